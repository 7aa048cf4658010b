"""Held models: whole multiples of the grid, the same bits by every road."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.tensors import replica
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.replica import LIMIT, FixedPoint, Regrid, Replica, ReplicaError, rescaled
from fedpress.compression.tensors.update import Sparse

LAYOUT = Layout(
    (TensorSpec("a", (3, 5), "float32"), TensorSpec("b", (4,), "float32"), TensorSpec("c", (1,), "float32"))
)
N = LAYOUT.size
MOST = float(np.finfo(np.float32).max)
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(-46, 39)  # as powers of ten: from nothing to beyond float32
exponents = st.integers(-149, 105)


def weights(seed: int, scale: float = 0.1) -> Vector:
    random = np.random.default_rng(seed)
    return (random.standard_normal(N) * scale * 10.0 ** random.integers(-3, 3)).astype(np.float32)


def held_at(seed: int, grid: FixedPoint, version: int = 0) -> Replica:
    return Replica(version, grid, np.random.default_rng(seed).integers(-LIMIT, LIMIT, N, np.int32, endpoint=True))


@given(seeds)
def test_the_nearest_point_of_the_grid_and_back(seed: int) -> None:
    vector = weights(seed)
    grid = FixedPoint.of(vector, LAYOUT)
    integers = grid.integers(vector, LAYOUT)
    floats = grid.floats(integers, LAYOUT)
    spacing = np.ldexp(1.0, grid.spacing(np.arange(N), LAYOUT))
    assert (np.abs(floats - vector) <= spacing / 2).all()
    assert (np.abs(integers) <= 2**20).all()
    np.testing.assert_array_equal(grid.integers(floats, LAYOUT), integers)
    assert FixedPoint.unpack(grid.pack(), LAYOUT) == grid


@given(st.lists(seeds, min_size=2, max_size=6))
def test_one_merged_delta_is_the_chain_and_both_can_be_undone(steps: list[int]) -> None:
    grid = FixedPoint.of(weights(1), LAYOUT)
    versions = [held_at(seed, grid, number) for number, seed in enumerate(steps)]
    first, last = versions[0], versions[-1]
    chained = first
    for after in versions[1:]:
        chained = chained.changed(chained.delta_to(after.integers, LAYOUT), after.version, b"", LAYOUT)
    merged = first.changed(first.delta_to(last.integers, LAYOUT), last.version, b"", LAYOUT)
    back = merged.changed(merged.delta_to(first.integers, LAYOUT), 0, b"", LAYOUT)
    for found, expected in ((chained, last), (merged, last), (back, first)):
        np.testing.assert_array_equal(found.integers, expected.integers)
        assert found.tag(0) == expected.tag(0)


def anywhere(seed: int, powers: tuple[float, float, float]) -> Vector:
    """Return finite weights, each tensor at a scale of its own."""
    parts = np.split(np.random.default_rng(seed).standard_normal(N), LAYOUT.offsets[1:-1])
    scaled = [np.clip(part * 10.0**power, -MOST, MOST) for part, power in zip(parts, powers, strict=True)]
    return np.concatenate(scaled).astype(np.float32)


@given(seeds, st.tuples(scales, scales, scales))
def test_a_grid_reaches_all_of_float32(seed: int, powers: tuple[float, float, float]) -> None:
    vector = anywhere(seed, powers)
    grid = FixedPoint.of(vector, LAYOUT)
    integers = grid.integers(vector, LAYOUT)
    floats = grid.floats(integers, LAYOUT)
    assert np.isfinite(floats).all()
    peaks = np.repeat([np.abs(part).max() for part in np.split(vector, LAYOUT.offsets[1:-1])], np.diff(LAYOUT.offsets))
    assert (np.abs(floats.astype(np.float64) - vector) <= peaks * 2.0**-20).all()  # 0 where float32 itself is as coarse
    np.testing.assert_array_equal(grid.integers(floats, LAYOUT), integers)


@given(seeds, st.tuples(scales, scales, scales), st.tuples(scales, scales, scales))
def test_a_grid_that_does_not_fit_is_changed_and_the_new_one_fits(
    seed: int, powers: tuple[float, float, float], others: tuple[float, float, float]
) -> None:
    before, wanted = anywhere(seed, powers), anywhere(seed + 1, others)
    grid = FixedPoint.of(before, LAYOUT)
    held = Replica(3, grid, grid.integers(before, LAYOUT))
    fitted = grid.fitted(wanted, held.integers, LAYOUT)
    after = held.regridded(grid.changes_to(fitted, 4), LAYOUT)
    assert after.grid == fitted == fitted.fitted(wanted, after.integers, LAYOUT)  # once is enough
    bounds = LAYOUT.offsets.tolist()
    for start, stop, exponent in zip(bounds[:-1], bounds[1:], fitted.exponents, strict=True):
        peak = float(np.abs(wanted[start:stop]).max())
        largest = max(peak, float(np.abs(after.floats(LAYOUT)[start:stop]).max()))
        assert peak <= (LIMIT + 0.5) * 2.0**exponent or exponent == 105
        assert largest == 0 or largest >= 2.0 ** (exponent + 16) or exponent == -149


@given(st.lists(st.integers(-LIMIT, LIMIT), min_size=1), exponents, exponents)
def test_integers_in_units_of_another_spacing_are_the_nearest_ones(values: list[int], before: int, after: int) -> None:
    found = rescaled(np.array(values, np.int32), before, after).tolist()
    for value, moved in zip(values, found, strict=True):
        exact = Fraction(value) * Fraction(2) ** (before - after)
        assert moved == min(max(math.floor(exact + Fraction(1, 2)), -LIMIT), LIMIT)
    every = np.full(len(values), before), np.full(len(values), after)
    assert rescaled(np.array(values, np.int32), *every).tolist() == found


def test_a_finer_grid_loses_nothing_and_back_nothing_either() -> None:
    integers = np.array([3, -5, 2**17 - 1, -(2**17)], np.int32)
    finer = rescaled(integers, -3, -9)
    assert finer.tolist() == [192, -320, 64 * (2**17 - 1), -LIMIT]  # what does not fit ends at the limit
    assert rescaled(finer[:3], -9, -3).tolist() == integers[:3].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_grid(bad: float) -> None:
    vector = np.zeros(N, np.float32)
    vector[4] = bad
    with pytest.raises(NonFiniteError, match="clients cannot be given"):
        FixedPoint.of(vector, LAYOUT)
    with pytest.raises(NonFiniteError, match="clients cannot be given"):
        FixedPoint.of(np.ones(N, np.float32), LAYOUT).fitted(vector, np.zeros(N, np.int32), LAYOUT)


def test_changes_of_the_grid_arrive_as_they_were_sent_or_are_refused() -> None:
    regrids = [Regrid(2**32 - 1, 2, -149), Regrid(7, 0, 105)]
    packed = replica.pack_regrids(regrids)
    assert replica.unpack_regrids(packed, LAYOUT) == regrids and len(packed) == 20
    for bad, match in (
        (packed[:-1], "10 bytes each, these are 19"),
        (replica.pack_regrids([Regrid(1, 3, 0)]), "beyond the 3"),
        (replica.pack_regrids([Regrid(1, 0, -150)]), "-149 to 2"),
        (replica.pack_regrids([Regrid(1, 0, 106)]), "-149 to 2"),
    ):
        with pytest.raises(ReplicaError, match=match):
            replica.unpack_regrids(bad, LAYOUT)


def test_the_tag_knows_every_part() -> None:
    held = held_at(1, FixedPoint((-20, -19, -18)), 3)
    other = held.integers.copy()
    other[7] += 1
    changed = (
        held._replace(version=4),
        held._replace(grid=FixedPoint((-20, -19, -17))),
        held._replace(integers=other),
        held._replace(buffers=b"\0"),
    )
    tags = {one.tag(0) for one in changed} | {held.tag(0), held.tag(1)}
    assert len(tags) == 6 and all(len(tag) == 8 for tag in tags)


def test_a_delta_that_leaves_the_grid_is_refused() -> None:
    held = Replica(0, FixedPoint((-20, -20, -20)), np.full(N, LIMIT, np.int32))
    for value in (2.0**-20, 2.0**-21):  # beyond the limit; between two points
        with pytest.raises(ReplicaError, match="leaves the grid"):
            held.changed(Sparse(np.array([2]), np.array([value], np.float32), N), 1, b"", LAYOUT)


@given(seeds)
def test_version_0_is_the_given_model_to_a_step_of_the_grid(seed: int) -> None:
    vector = weights(seed)
    made = Replica.initial(vector, LAYOUT, b"buffers")
    spacing = np.ldexp(1.0, made.grid.spacing(np.arange(N), LAYOUT))
    assert made.version == 0 and made.buffers == b"buffers"
    assert (np.abs(made.floats(LAYOUT).astype(np.float64) - vector) <= spacing / 2).all()
    again = Replica.initial(vector.copy(), LAYOUT, b"buffers")
    assert again.tag(0) == made.tag(0) != Replica.initial(vector, LAYOUT, b"others").tag(0)
    assert made.tag(0, b"frozen") != made.tag(0)
    other = vector.copy()
    other[seed % N] += np.float32(1)
    assert Replica.initial(other, LAYOUT, b"buffers").tag(0) != made.tag(0)


@pytest.mark.parametrize("length", [0, 7, 38, 200])
def test_a_grid_of_another_model_is_refused(length: int) -> None:
    with pytest.raises(ReplicaError, match="does not fit 3 tensors"):
        FixedPoint.unpack(bytes(length), LAYOUT)
    with pytest.raises(ReplicaError, match="-149 to 2"):
        FixedPoint.unpack(FixedPoint((0, 106, 0)).pack(), LAYOUT)


@given(st.lists(st.integers(-LIMIT, LIMIT)))
def test_a_version_that_is_kept_in_less_memory_is_the_same(values: list[int]) -> None:
    one = Replica(3, FixedPoint((-4, 2)), np.array(values, np.int32), b"buffers")
    kept = one.kept()
    again = kept.whole()
    assert kept.integers.nbytes == 3 * len(values) and again.integers.dtype == np.int32
    assert again._replace(integers=[]) == one._replace(integers=[]) and again.integers.tolist() == values
