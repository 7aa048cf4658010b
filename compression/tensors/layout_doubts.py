"""Doubts about a layout that was guessed from names: what in the arrays themselves speaks against the guess.

Names decide which arrays are averaged as values (running statistics) and which are trained; equal names in memory are
not visible at all. Where a model has no names, or others than the usual ones, a guess can be wrong without any error: a
running variance that is taken for a weight gets sparse changes, and can fall below zero; tied weights drift apart.
Nothing is decided here: each doubt is a sentence for the log, with the line that settles it.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import Layout

SMALL = 256
"""Entries below which a whole model takes no more than what a message has around it: 1 kB as float32."""

_STATISTICS = re.compile(
    r"(^|[_\W\d])(mean|var|variance|std|stddev|ema|avg|average|moving|running|stats|shadow|min_val|max_val)($|[_\W\d])"
)
_TRAINED = re.compile(r"log_?(var|std|variance)|scale|weight|bias|kernel")
_SHOWN = 6


def doubts(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> list[str]:
    """Return what speaks against a layout that `Layout.of_arrays` guessed, a sentence each; empty: nothing.

    Args:
        arrays: The arrays of the initial model by name.
        layout: The guess.
    """
    found = [_unnamed(arrays, layout), _other_names(layout), _equal(arrays, layout), _too_small(layout), _wide(layout)]
    return [doubt for doubt in found if doubt]


def _unnamed(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> str:
    """Doubt about running statistics among arrays that are only numbered, as `get_weights()` of Keras returns them."""
    if not all(name.isdecimal() for name in arrays):
        return ""
    suspects: list[str] = []
    for (shape, floating), run in groupby(arrays, lambda name: (arrays[name].shape, arrays[name].dtype.kind == "f")):
        names = list(run)
        if len(shape) == 1 and shape[0] > 1 and floating:
            suspects += _statistics_in(names, arrays)
    trained = {spec.name for spec in layout.parameters}
    suspects = [name for name in suspects if name in trained]
    if not suspects:
        return ""
    return (
        f"the arrays have numbers for names, so all {len(layout.parameters)} floating ones count as trained"
        " weights; but"
        f" {_listed(suspects)} look like running means and variances (batch normalization), and as weights they get"
        f" sparse steps, a variance even below zero. Say so on both sides:"
        f" layout=Layout.of_arrays(arrays, buffers={suspects[:_SHOWN]}{' + ...' if len(suspects) > _SHOWN else ''})"
    )


def _statistics_in(names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return which of successive vectors of one length look like running means and variances.

    A new layer of batch normalization is (ones, zeros,) zeros, ones; one that was trained is recognized by a run of
    four or more vectors of one length, which no other usual layer has, and whose last is never negative.
    """
    fresh = [
        name
        for mean, variance in zip(names, names[1:], strict=False)
        if not arrays[mean].any() and (arrays[variance] == 1).all()
        for name in (mean, variance)
    ]
    if fresh or len(names) < 4 or (arrays[names[-1]] < 0).any():
        return fresh
    return names[-2:]


def _other_names(layout: Layout) -> str:
    """Doubt about names that speak of statistics, but are not the usual ones."""
    suspects = [
        spec.name
        for spec in layout.parameters
        if _STATISTICS.search(last := re.split(r"[./]", spec.name)[-1].removesuffix(":0").lower())
        and not _TRAINED.search(last)
    ]
    if not suspects:
        return ""
    return (
        f"{_listed(suspects)} count as trained weights, though their names speak of statistics; if they are not"
        " trained,"
        " say so on both sides: layout=Layout.of(model), or layout=Layout.of_arrays(arrays,"
        f" buffers={suspects[:_SHOWN]})"
    )


def _equal(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> str:
    """Doubt about arrays with the same content, which may be one tensor in the model.

    Arrays of one value alone, such as new biases and scales, say nothing.
    """
    first: dict[tuple[Any, ...], str] = {}
    pairs: list[tuple[str, str]] = []
    shapes = [(spec.shape, spec.dtype) for spec in layout.parameters]
    for spec in layout.parameters:
        array = arrays[spec.name]
        if spec.size < 2 or shapes.count((spec.shape, spec.dtype)) < 2 or (array == array.flat[0]).all():
            continue
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        canonical = first.setdefault((spec.shape, spec.dtype, content), spec.name)
        if canonical != spec.name:
            pairs.append((spec.name, canonical))
    if not pairs:
        return ""
    alias, canonical = pairs[0]
    others = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
    return (
        f"{alias!r} and {canonical!r} hold the same values{others}. If they are one tensor in the model (tied weights),"
        " they drift apart unless both sides know: layout=Layout.of(model), or"
        f" layout=Layout.of_arrays(arrays, tied={pairs[:_SHOWN]}); if they only begin alike, all is well"
    )


def _too_small(layout: Layout) -> str:
    if layout.size >= SMALL:
        return ""
    return (
        f"the model has {layout.size} weights, {4 * layout.size} bytes, which is less than what a message has"
        " around it:"
        " compression cannot pay here, and sending a part of the weights costs rounds; Flower's FedAvg does as well, or"
        " compress(encoder.dense())"
    )


def _wide(layout: Layout) -> str:
    wide = [spec.name for spec in layout.parameters if spec.dtype == "float64"]
    if not wide:
        return ""
    return f"{len(wide)} arrays are float64 ({_listed(wide)}): their updates are computed and sent in float32"


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
