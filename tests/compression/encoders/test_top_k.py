"""The k largest magnitudes: exact where the sample serves, where it misleads, and where values are equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.encoders import top_k
from fedpress.compression.tensors.layout import BLOCK, Vector

ENTRIES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
VECTORS = npst.arrays(np.float32, st.integers(0, 60), elements=ENTRIES, fill=ENTRIES)


def by_sorting(vector: Vector, k: int) -> NDArray[np.int64]:
    """The k largest magnitudes by a full stable sort: ties by lowest position, no zeros."""
    magnitudes = np.abs(vector)
    order = np.argsort(-magnitudes, kind="stable")[:k]
    return np.sort(order[magnitudes[order] > 0])


@given(VECTORS, st.integers(1, 80))
def test_it_is_a_stable_sort_that_is_cut_off(vector: Vector, k: int) -> None:
    np.testing.assert_array_equal(top_k.largest(vector, k), by_sorting(vector, k))


@pytest.mark.parametrize("stride", [1, 4, 16])
@pytest.mark.parametrize("n", [top_k.SAMPLE + 1, 4 * BLOCK - 1, 4 * BLOCK + 9])
def test_a_sample_that_misleads_changes_nothing(n: int, stride: int) -> None:
    """The sample takes every 16th entry: those are the large ones here, or the small ones."""
    random = np.random.default_rng(n)
    large = np.arange(n) % stride == 0
    for vector in (random.random(n) + 9 * large, random.random(n) - 9 * ~large, np.where(large, 2.0, 1.0)):
        single = vector.astype(np.float32)
        for k in (1, n // 100, n // 9):
            np.testing.assert_array_equal(top_k.largest(single, k), by_sorting(single, k))


@given(VECTORS, VECTORS, st.integers(1, 80))
def test_an_addend_is_added_in_place_first(vector: Vector, addend: Vector, k: int) -> None:
    n = min(len(vector), len(addend))
    with np.errstate(over="ignore"):
        total = vector[:n] + addend[:n]
    for choose in (lambda v, a: top_k.largest(v, k, a), lambda v, a: top_k.at_least(v, np.float32(1), a)):
        summed = vector[:n].copy()
        if not np.isfinite(total).all():
            with pytest.raises(errors.NonFiniteError, match="did training diverge"):
                choose(summed, addend[:n])
            continue
        np.testing.assert_array_equal(choose(summed, addend[:n]), choose(total, None))
        np.testing.assert_array_equal(summed.view(np.uint32), total.view(np.uint32))


@given(VECTORS, st.floats(0, 2.0**100, width=32))
def test_at_least_takes_all_that_reach_the_bound_and_no_zero(vector: Vector, bound: float) -> None:
    chosen = top_k.at_least(vector, np.float32(bound))
    np.testing.assert_array_equal(chosen, np.flatnonzero((np.abs(vector) >= bound) & (vector != 0)))
