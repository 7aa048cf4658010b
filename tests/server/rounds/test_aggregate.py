"""The laws of the accumulator and of the buffers' mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpress.compression import errors
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, values
from fedpress.server.rounds.aggregate import LARGEST, Accumulator, BufferMean, ReplyMean

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


@pytest.mark.parametrize("value", [2 * LARGEST, 3.4e38, -3.4e38])
def test_an_entry_beyond_any_training_is_refused_and_nothing_of_it_is_added(value: float) -> None:
    layout = Layout((TensorSpec("w", (3,), "float32"),))
    mean, info = ReplyMean(layout), SideInfo(layout)
    good, bad = (
        payloads.pack(Dense(np.array([1, entry, 1], np.float32)), layout, values.FLOAT32).payload
        for entry in (LARGEST, value)
    )
    mean.add(good, b"", 2.0, info)
    with pytest.raises(errors.ValuesTooLarge, match="an entry of .*e.*, more than 1.13e"):
        mean.add(bad, b"", 1.0, info)
    np.testing.assert_array_equal(mean.result({})[0], np.array([1, LARGEST, 1], np.float32))


FLOATS = arrays(np.float64, 3, elements=st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(st.tuples(FLOATS, st.floats(1e-9, 1e9)), min_size=1, max_size=5), st.sampled_from([16, 32, 64]))
def test_the_mean_of_any_buffers_is_between_them(weighted: list[tuple[np.ndarray, float]], bits: int) -> None:
    dtype = np.dtype(f"float{bits}")
    limit = np.finfo(dtype).max
    layout = Layout((), (TensorSpec("mean", (3,), str(dtype)),))
    total, buffers = BufferMean(layout), []
    for value, weight in weighted:
        buffers.append(np.clip(value, -limit, limit).astype(dtype))
        total.add({"mean": buffers[-1]}, weight)
    result = total.result({"mean": np.zeros(3, dtype)})["mean"].astype(np.float64)
    low, high = np.min(buffers, axis=0).astype(np.float64), np.max(buffers, axis=0).astype(np.float64)
    room = 1e-3 * np.maximum(np.abs(low), np.abs(high)) / 2 + 1e-7  # half of each: their sum stays in range
    assert (low / 2 - room <= result / 2).all() and (result / 2 <= high / 2 + room).all()


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


@given(
    st.sampled_from(["float16", "bfloat16", "float32", "float64", "int64", "uint8"]),
    st.binary(min_size=24, max_size=24),
    st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=9),
)
def test_what_all_clients_have_alike_stays_to_the_bit(dtype: str, data: bytes, weights: list[float]) -> None:
    values = np.frombuffer(data, "uint16" if dtype == "bfloat16" else dtype)  # NaN, infinity, -0 and subnormal ones too
    total = BufferMean(Layout((), (TensorSpec("constant", values.shape, dtype),)))
    for number, weight in enumerate(weights):
        value = values.copy()
        if number:
            value[0] += 1  # one entry moves at some
        total.add({"constant": value}, weight)
    mean = total.result({"constant": np.zeros_like(values)})["constant"]
    assert mean.dtype == values.dtype and mean[1:].tobytes() == values[1:].tobytes()


def test_bfloat16_buffers_are_averaged_as_numbers() -> None:
    total = BufferMean(Layout((), (TensorSpec("mean", (2,), "bfloat16"),)))
    total.add({"mean": np.array([0x3F80, 0xBF80], np.uint16)}, 1)  # 1, -1
    total.add({"mean": np.array([0x4040, 0xC040], np.uint16)}, 1)  # 3, -3
    assert total.result({"mean": np.zeros(2, np.uint16)})["mean"].tolist() == [0x4000, 0xC000]


@pytest.mark.parametrize("entries", [100, 60_000, 200_000])
def test_what_waits_to_be_added_has_the_bits_of_one_sum_in_float64(entries: int) -> None:
    size, random = 700_001, np.random.default_rng(entries)  # of few entries and many, within and beyond what may wait
    total, expected, weights = Accumulator(size), np.zeros(size), random.uniform(0.1, 90, 5)
    for number, weight in enumerate(weights):
        if number == 3 and entries > 100:
            dense = random.standard_normal(size).astype(np.float32)
            update: Sparse | Dense = Dense(dense)
        else:
            positions = np.sort(random.choice(size, entries, replace=False))
            update = Sparse(positions, random.standard_normal(entries).astype(np.float32), size)
        total.add(update, weight)
        expected += weight * update.dense().astype(np.float64)
    assert total.mean().tobytes() == (expected / sum(weights.tolist())).astype(np.float32).tobytes()
    assert total.mean().tobytes() == total.mean().tobytes()
    total.reset()
    total.add(Sparse(np.array([3]), np.array([2.0], np.float32), size), 2.0)
    assert total.mean()[3] == 2.0


def test_an_update_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="4 entries, got one of 5"):
        Accumulator(4).add(Dense(np.ones(5, np.float32)), 1.0)
