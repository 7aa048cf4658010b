"""Updates: adding decoded payloads is adding their dense forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.samples import normal

from fedpress.compression.tensors.layout import BLOCK
from fedpress.compression.tensors.update import Dense, Factors, LowRank, Sparse, Update


@st.composite
def updates(draw: st.DrawFn, n: int = 30) -> Update:
    numbers = st.floats(-1e3, 1e3, width=32)
    if draw(st.booleans()):
        return Dense(np.array(draw(st.lists(numbers, min_size=n, max_size=n)), np.float32))
    positions = np.array(sorted(draw(st.sets(st.integers(0, n - 1)))), np.int64)
    return Sparse(positions, np.array([draw(numbers) for _ in positions], np.float32), n)


@given(st.lists(st.tuples(updates(), st.floats(0, 1e4))), st.sampled_from([np.float32, np.float64]))
def test_law_of_the_accumulator(
    weighted: list[tuple[Update, float]], dtype: type[np.float32] | type[np.float64]
) -> None:
    sparse, dense = np.zeros(30, dtype), np.zeros(30, dtype)
    for update, weight in weighted:
        update.add_to(sparse, weight)
        dense += update.dense().astype(dtype) * dtype(weight)
    np.testing.assert_array_equal(sparse, dense)


@given(updates())
def test_the_forms_agree(update: Update) -> None:
    assert update.size == 30 and update.count == len(update.values)
    np.testing.assert_array_equal(update.sparse().dense(), update.dense())
    assert update.sparse().count == update.count


@given(updates(), st.sampled_from([0.0, -2e38, np.nan, np.inf]))
def test_the_peak_is_the_largest_magnitude_or_what_is_no_number(update: Update, odd: float) -> None:
    assert update.peak() == np.abs(update.dense()).max()
    values = np.append(update.values, np.float32(odd))
    many = np.zeros(2 * BLOCK, np.float32)
    many[:1] = odd
    for form in (Dense(values), Dense(many), Sparse(np.arange(len(values)), values, 99)):
        np.testing.assert_equal(form.peak(), float(np.abs(form.values).max()))


def test_the_peak_of_factors_is_that_of_their_product() -> None:
    left, right = np.array([[1e30], [0]], np.float32), np.array([[2e-30], [-1e30]], np.float32)
    assert LowRank((Factors(left, right),)).peak() == np.inf
    assert LowRank((Factors(left, right[:1]), np.array([1.5], np.float32))).peak() == pytest.approx(2)
    assert not np.isfinite(LowRank((Factors(np.hstack([left, -left]), np.hstack([right, right])),)).peak())
    assert LowRank(()).peak() == Dense(np.empty(0, np.float32)).peak() == 0


def test_a_dense_update_of_many_blocks() -> None:
    values = np.arange(2 * BLOCK + 5, dtype=np.float32)
    accumulator = np.ones(len(values))
    Dense(values).add_to(accumulator, 0.5)
    np.testing.assert_array_equal(accumulator, 1 + 0.5 * values.astype(np.float64))


@pytest.mark.parametrize("accumulator", [np.zeros(3), np.zeros((4, 1)), np.zeros(4, np.int64), np.zeros(4, np.float16)])
@pytest.mark.parametrize("update", [Dense(np.ones(4, np.float32)), Sparse(np.array([1]), np.ones(1, np.float32), 4)])
def test_an_accumulator_that_does_not_fit_is_refused(update: Update, accumulator: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an accumulator of float32 or float64 and shape \(4,\)"):
        update.add_to(accumulator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adding_factors_is_adding_the_matrix(dtype: type[np.float32] | type[np.float64]) -> None:
    random = np.random.default_rng(1)
    left, right = (random.standard_normal((size, 2)).astype(np.float32) for size in (300, 700))
    one = LowRank((Factors(left, right), normal(5)))
    accumulator, dense = np.ones(one.size, dtype), np.ones(one.size, dtype)
    one.add_to(accumulator, 0.3)
    Dense(one.dense()).add_to(dense, 0.3)
    np.testing.assert_array_equal(accumulator, dense)
    np.testing.assert_allclose(one.dense()[:-5], (left @ right.T).ravel(), rtol=1e-5, atol=1e-6)
    assert one.size == one.count == len(one.values) == one.sparse().count == 210_005
    with pytest.raises(ValueError, match=r"shape \(210005,\)"):
        one.add_to(np.zeros(3))
