"""The laws of the accumulator and of the buffers' mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.server.rounds.aggregate import Accumulator, BufferMean

VECTORS = st.lists(arrays(np.float32, 20, elements=st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=6)


@given(VECTORS, st.integers(1, 9))
def test_adding_sparse_updates_equals_adding_their_dense_forms(vectors: list[np.ndarray], weight: int) -> None:
    sparse, dense = Accumulator(20), Accumulator(20)
    for number, vector in enumerate(vectors):
        positions = np.flatnonzero(vector)
        sparse.add(Sparse(positions, vector[positions], 20), weight + number)
        dense.add(Dense(vector), weight + number)
    np.testing.assert_array_equal(sparse.mean(), dense.mean())
    weights = weight + np.arange(len(vectors))
    np.testing.assert_allclose(sparse.mean(), np.average(vectors, axis=0, weights=weights), rtol=1e-5, atol=1e-4)


def test_the_mean_of_nothing_is_an_error_also_after_a_reset() -> None:
    total = Accumulator(3)
    total.add(Dense(np.ones(3, np.float32)), 2)
    assert (total.count, total.weight) == (1, 2)
    total.reset()
    with pytest.raises(ValueError, match="no updates"):
        total.mean()


def test_buffers_keep_their_kinds() -> None:
    layout = Layout(
        (), (TensorSpec("mean", (2,), "float32"), TensorSpec("count", (), "int64"), TensorSpec("seen", (2,), "bool"))
    )
    held = {"mean": np.zeros(2, np.float32), "count": np.array(9), "seen": np.array([False, False])}
    total = BufferMean(layout)
    total.add({"mean": np.array([1, 2], np.float32), "count": np.array(4), "seen": np.array([True, False])}, 1)
    total.add({"mean": np.array([3, 6], np.float32), "count": np.array(11), "seen": np.array([False, False])}, 3)
    result = total.result(held)
    np.testing.assert_array_equal(result["mean"], np.array([2.5, 5.0], np.float32))
    assert result["count"] == 11 and result["count"].dtype == held["count"].dtype
    assert result["seen"].tolist() == [True, False] and result["seen"].dtype == np.bool_
    assert BufferMean(layout).result(held)["count"] == 9  # nobody sent any: what was held stays
