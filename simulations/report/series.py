"""Curves of accuracy over rounds and bytes, of one run or as means over several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Literal, NamedTuple

from fedpress.simulations.report.figures import Curve
from fedpress.simulations.results.records import Results

AVERAGED = 10  # rounds that a run's accuracy is the mean of

Axis = Literal["round", "up", "both"]


class Point(NamedTuple):
    """An evaluated round.

    Attributes:
        round: Its number, from 1.
        up: Bytes that all clients have sent by its end.
        both: Bytes up and down by its end.
        accuracy: A fraction.
    """

    round: int
    up: int
    both: int
    accuracy: float


def points(results: Results) -> list[Point]:
    """Return the evaluated rounds in their order."""
    up = accumulate(result.up_bytes for result in results.rounds)
    both = accumulate(result.up_bytes + result.down_bytes for result in results.rounds)
    return [
        Point(result.round, up_so_far, both_so_far, result.accuracy)
        for result, up_so_far, both_so_far in zip(results.rounds, up, both, strict=True)
        if result.accuracy is not None
    ]


def running(points: Sequence[Point]) -> list[Point]:
    """Return the same rounds, each with the mean accuracy of the last ten rounds."""
    return [
        last._replace(
            accuracy=fmean(point.accuracy for point in points if last.round - AVERAGED < point.round <= last.round)
        )
        for last in points
    ]


def curve(label: str, runs: Sequence[Sequence[Point]], axis: Axis, *, smooth: bool = False) -> Curve | None:
    """Return one run as a line, or several as their mean with a band from the least to the greatest.

    Of several runs only the rounds that all have evaluated are used, with the mean of their bytes.

    Args:
        label: Label of the line.
        runs: Points of each run; at least one run.
        axis: Quantity on the x axis. Points with x = 0 are left out, since axes of bytes are logarithmic.
        smooth: Whether the points are running means.

    Returns:
        The curve; None if it has no point.
    """
    shared = set.intersection(*({point.round for point in run} for run in runs))
    rows = [[point for point in run if point.round in shared] for run in runs]
    columns = [column for column in zip(*rows, strict=True) if all(getattr(point, axis) > 0 for point in column)]
    if not columns:
        return None
    x = [fmean(getattr(point, axis) for point in column) for column in columns]
    heights = [[point.accuracy for point in column] for column in columns]
    drawn = Curve(label, x, [fmean(height) for height in heights], smooth=smooth)
    if len(runs) == 1:
        return drawn
    return drawn._replace(low=[min(height) for height in heights], high=[max(height) for height in heights])
