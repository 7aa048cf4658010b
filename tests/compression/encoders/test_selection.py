"""Selectors: exactly the entries that they promise, on any data."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.encoders import selection
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo

Random = np.random.Generator


def shared_of(*sizes: int) -> SideInfo:
    return SideInfo(Layout(tuple(TensorSpec(str(index), (size,), "float32") for index, size in enumerate(sizes))))


def by_sorting(vector: Vector, k: int) -> NDArray[np.int64]:
    """The k largest magnitudes by a full stable sort: ties by lowest position, no zeros."""
    magnitudes = np.abs(vector)
    order = np.argsort(-magnitudes, kind="stable")[:k]
    return np.sort(order[magnitudes[order] > 0])


KINDS: dict[str, Callable[[Random, int], NDArray[np.float64]]] = {
    "normal": lambda random, n: random.standard_normal(n),
    "all equal": lambda random, n: np.full(n, -0.25),
    "zeros": lambda random, n: np.zeros(n) * random.choice([-1, 1], n),
    "nearly all zero": lambda random, n: np.where(random.random(n) < 0.001, random.standard_normal(n), 0),
    "nearly all one value": lambda random, n: np.where(random.random(n) < 0.001, random.standard_normal(n), 1),
    "few values": lambda random, n: random.integers(-3, 4, n) * 0.5,
    "subnormal": lambda random, n: random.integers(-50, 50, n) * 2.0**-149,
    "of every size": lambda random, n: random.standard_normal(n) * 10 ** random.uniform(-40, 30, n),
    "layers": lambda random, n: random.standard_normal(n) * 10.0 ** -(np.arange(n) * 5 // max(n, 1)),
    # The sample takes every (n // SAMPLE)-th entry: it sees only large ones here, or none.
    "every fourth large": lambda random, n: random.random(n) + np.where(np.arange(n) % 4 == 0, 9, 0),
    "every fourth small": lambda random, n: random.random(n) + np.where(np.arange(n) % 4 == 0, 0, 9),
    "rising": lambda random, n: np.arange(n, dtype=np.float64),
}


def drawn(kind: str, n: int, seed: int) -> Vector:
    return KINDS[kind](np.random.default_rng(seed), n).astype(np.float32)


@pytest.mark.parametrize("density", [1e-9, 0.001, 0.01, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 1000, 16384, 65537, 150_000])
def test_top_k_is_exact_on_any_data(kind: str, n: int, density: float) -> None:
    vector = drawn(kind, n, n)
    k = max(1, round(density * n))
    before = vector.copy()
    chosen = selection.top_k(density)(vector, shared_of(n), 0)
    assert chosen.dtype == np.int64
    np.testing.assert_array_equal(chosen, by_sorting(vector, k))
    assert len(chosen) == min(k, np.count_nonzero(vector))
    np.testing.assert_array_equal(vector, before)


TIES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0**-149, -(2.0**-149)])
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = npst.arrays(np.float32, st.integers(0, 60), elements=st.one_of(TIES, FINITE), fill=TIES)


@given(VECTORS, st.integers(1, 80))
def test_top_k_is_a_stable_sort_that_is_cut_off(vector: Vector, k: int) -> None:
    chosen = selection.top_k(k=k)(vector, shared_of(len(vector)), 0)
    np.testing.assert_array_equal(chosen, by_sorting(vector, k))


@given(st.lists(st.integers(0, 30), max_size=5), st.floats(0, 1, exclude_min=True), st.integers(0, 2**32))
def test_by_layer_is_top_k_of_each_tensor(sizes: list[int], density: float, seed: int) -> None:
    n = sum(sizes)
    vector = np.random.default_rng(seed).integers(-4, 5, n).astype(np.float32)
    chosen = selection.top_k(density, scope="layer")(vector, shared_of(*sizes), 0)
    expected, start = [], 0
    for size in sizes:
        part = vector[start : start + size]
        expected += [start + p for p in by_sorting(part, max(1, round(density * size)) if size else 0).tolist()]
        start += size
    assert chosen.dtype == np.int64
    assert chosen.tolist() == expected


@given(VECTORS, st.floats(0, 1, exclude_min=True), st.floats(0, 1), st.data())
def test_correlated_is_top_k_of_the_reference_and_then_of_the_rest(
    vector: Vector, density: float, fresh: float, data: st.DataObject
) -> None:
    n = len(vector)
    held = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    reference = np.array(sorted(held), np.int64)
    rest = np.setdiff1d(np.arange(n), reference)
    before = vector.copy()
    chosen = selection.correlated(density, fresh)(vector, shared_of(n)._replace(shared_positions=reference), 0)
    k = max(1, round(density * n)) if n else 0
    wanted = k - round(fresh * k) if held else 0
    inside = reference[by_sorting(vector[reference], wanted)]
    outside = rest[by_sorting(vector[rest], k - len(inside))]
    assert chosen.dtype == np.int64 and chosen.tolist() == sorted([*inside, *outside])
    np.testing.assert_array_equal(vector, before)
    # So many of them are of the reference, and so many are sent in all.
    assert len(inside) == min(wanted, np.count_nonzero(vector[reference]))
    assert len(chosen) == min(k, len(inside) + np.count_nonzero(vector[rest]))


@given(VECTORS, st.floats(0, 1, exclude_min=True), st.floats(0, 1))
def test_correlated_without_a_reference_is_top_k(vector: Vector, density: float, fresh: float) -> None:
    shared = shared_of(len(vector))
    expected = selection.top_k(density)(vector, shared, 0)
    for reference in (None, np.empty(0, np.int64)):
        chosen = selection.correlated(density, fresh)(vector, shared._replace(shared_positions=reference), 0)
        np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("fresh", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("place", [3, 4])
def test_correlated_finds_what_is_not_finite_in_and_outside_the_reference(fresh: float, place: int) -> None:
    vector = np.ones(100, np.float32)
    vector[place] = np.nan
    shared = shared_of(100)._replace(shared_positions=np.arange(0, 100, 2))
    with pytest.raises(errors.NonFiniteError, match="did training diverge"):
        selection.correlated(0.1, fresh)(vector, shared, 0)


@given(VECTORS, st.floats(0, 2.0**100, width=32))
def test_threshold_takes_all_that_reach_it(vector: Vector, value: float) -> None:
    chosen = selection.threshold(value)(vector, shared_of(len(vector)), 0)
    np.testing.assert_array_equal(chosen, np.flatnonzero((np.abs(vector) >= value) & (vector != 0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 1000, 65537, 150_000])
@pytest.mark.parametrize("name", ["top_k", "top_k of nearly all", "top_k by layer", "correlated", "threshold"])
def test_selecting_from_a_sum_is_selecting_after_adding(name: str, kind: str, n: int) -> None:
    vector, addend = drawn(kind, n, 1), drawn(kind, n, 2)
    total = vector + addend
    chosen = SELECTORS[name](vector, shared_of(n), 3, addend)
    np.testing.assert_array_equal(vector.view(np.uint32), total.view(np.uint32))
    np.testing.assert_array_equal(chosen, SELECTORS[name](total, shared_of(n), 3))


SELECTORS = {
    "top_k": selection.top_k(0.01),
    "top_k of nearly all": selection.top_k(0.9),
    "top_k by layer": selection.top_k(0.01, scope="layer"),
    "correlated": selection.correlated(0.01, 0.2),
    "threshold": selection.threshold(1e30),
}


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [7, 100_000])
def test_a_vector_that_is_not_finite_is_refused_wherever_it_is_not(selector: str, value: float, n: int) -> None:
    for place in (0, n // 2, n - 1):
        vector = np.ones(n, np.float32)
        vector[place] = value
        with pytest.raises(errors.NonFiniteError, match="did training diverge"):
            SELECTORS[selector](vector, shared_of(n), 0)


@pytest.mark.parametrize("selector", SELECTORS)
def test_empty_and_all_zero_vectors_give_nothing(selector: str) -> None:
    for n in (0, 1, 50_000):
        chosen = SELECTORS[selector](np.zeros(n, np.float32), shared_of(n), 0)
        assert chosen.dtype == np.int64 and chosen.shape == (0,)


@pytest.mark.parametrize("density", [0, 2, -0.5, float("nan"), 1.0001])
def test_a_density_out_of_range_is_named(density: float) -> None:
    for make in (selection.top_k, selection.correlated):
        with pytest.raises(ValueError, match=f"density {density} is out of range; expected 0 < density <= 1"):
            make(density)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: selection.top_k(), "not both or neither"),
        (lambda: selection.top_k(0.1, k=3), "not both or neither"),
        (lambda: selection.top_k(k=0), "k is 0, expected at least 1"),
        (lambda: selection.top_k(0.1, scope="tensor"), "'tensor' is not one of global, layer"),  # type: ignore[arg-type]
        (lambda: selection.correlated(0.1, -0.5), "fresh is -0.5, expected 0 to 1"),
        (lambda: selection.correlated(0.1, float("nan")), "fresh is nan, expected 0 to 1"),
        (lambda: selection.threshold(-1), "threshold -1 is not a finite float32"),
        (lambda: selection.threshold(1e39), "is not a finite float32"),
        (lambda: selection.threshold(float("nan")), "is not a finite float32"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], selection.Selector], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
