"""Held models: whole multiples of the grid, the same bits by every road."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.replica import LIMIT, FixedPoint, Replica, ReplicaError
from fedpress.compression.tensors.update import Sparse

LAYOUT = Layout(
    (TensorSpec("a", (3, 5), "float32"), TensorSpec("b", (4,), "float32"), TensorSpec("c", (1,), "float32"))
)
N = LAYOUT.size
seeds = st.integers(0, 2**32 - 1)


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
