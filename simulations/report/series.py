"""The curves of runs: the accuracy that was measured and the bytes it had cost, of one run or of several alike."""

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
    """A round that was evaluated; bytes are those of the run by its end, all clients together."""

    round: int
    up: int
    both: int  # up and down
    accuracy: float  # a fraction


def points(results: Results) -> list[Point]:
    """The rounds that were evaluated, in their order."""
    up = accumulate(result.up_bytes for result in results.rounds)
    both = accumulate(result.up_bytes + result.down_bytes for result in results.rounds)
    return [
        Point(result.round, up_so_far, both_so_far, result.accuracy)
        for result, up_so_far, both_so_far in zip(results.rounds, up, both, strict=True)
        if result.accuracy is not None
    ]


def running(found: Sequence[Point]) -> list[Point]:
    """The same rounds, each with the mean accuracy of the last ten rounds."""
    return [
        last._replace(
            accuracy=fmean(point.accuracy for point in found if last.round - AVERAGED < point.round <= last.round)
        )
        for last in found
    ]


def curve(label: str, runs: Sequence[Sequence[Point]], axis: Axis, *, smooth: bool = False) -> Curve | None:
    """One run as a line, or several as their mean with a band from the least to the greatest.

    Of several, the rounds count that all have evaluated; bytes are their mean.

    Args:
        label: of the line.
        runs: the points of each; at least one run.
        axis: what x is. Rounds before any byte are left out where it is bytes: its axis is logarithmic.
        smooth: whether the points are running means.

    Returns:
        None if there is no point.
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
