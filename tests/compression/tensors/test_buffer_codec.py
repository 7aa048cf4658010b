"""Buffers as bytes: in their own dtypes, bit for bit, and one error for each fault."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout, TensorSpec

BUFFERS = Layout(
    (),
    (
        TensorSpec("bn.running_mean", (2,), "float32"),
        TensorSpec("bn.running_var", (2,), "bfloat16"),
        TensorSpec("bn.num_batches_tracked", (), "int64"),
        TensorSpec("seen", (3,), "bool"),
        TensorSpec("none", (0,), "float64"),
    ),
)


def buffers() -> dict[str, NDArray[Any]]:
    return {
        "bn.running_mean": np.array([1, -2], np.float32),
        "bn.running_var": np.array([0x8000, 0x3F80], np.uint16),  # -0 and 1
        "bn.num_batches_tracked": np.array(2**40 + 1),
        "seen": np.array([True, False, True]),
        "none": np.empty(0),
    }


def test_buffers_travel_in_their_own_dtypes() -> None:
    data = buffer_codec.pack(buffers(), BUFFERS)
    assert data.hex(" ") == "00 00 80 3f 00 00 00 c0 00 80 80 3f 01 00 00 00 00 01 00 00 01 00 01"
    again = buffer_codec.unpack(data, BUFFERS)
    for name, array in buffers().items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: data[:-1], errors.Truncated),
        (lambda data: data + b"\0", errors.LengthMismatch),
        (lambda data: b"\x00\x00\xc0\x7f" + data[4:], errors.NonFiniteValues),  # a mean of NaN
        (lambda data: data[:8] + b"\x80\x7f" + data[10:], errors.NonFiniteValues),  # a variance of infinity
        (lambda data: data[:8] + b"\x01\x80" + data[10:], errors.NegativeVariance),
    ],
)
def test_each_fault_of_buffers_is_found(change: Any, fault: type[errors.PayloadError]) -> None:
    with pytest.raises(fault):
        buffer_codec.unpack(change(buffer_codec.pack(buffers(), BUFFERS)), BUFFERS)


def test_any_byte_is_a_valid_boolean() -> None:
    data = buffer_codec.pack(buffers(), BUFFERS)
    assert buffer_codec.unpack(data[:-1] + b"\xff", BUFFERS)["seen"].view(np.uint8).tolist() == [1, 0, 1]


def test_buffers_that_are_not_finite_are_not_packed() -> None:
    with pytest.raises(errors.NonFiniteError, match="bn.running_mean"):
        buffer_codec.pack(buffers() | {"bn.running_mean": np.array([np.nan, 0], np.float32)}, BUFFERS)


@given(st.lists(st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan]), min_size=1, max_size=4), st.data())
def test_entries_that_are_not_finite_may_stay_and_not_come(before: list[float], data: st.DataObject) -> None:
    layout = Layout((), (TensorSpec("mask", (len(before),), "float32"),))
    held = {"mask": np.array(before, np.float32)}
    sent = {"mask": np.array([data.draw(st.sampled_from([old, 2.0, np.inf, np.nan])) for old in before], np.float32)}
    same = (sent["mask"] == held["mask"]) | (np.isnan(sent["mask"]) & np.isnan(held["mask"]))
    allowed = bool((np.isfinite(sent["mask"]) | same).all())
    forced = buffer_codec.pack(sent, layout, None)
    if allowed:
        assert buffer_codec.pack(sent, layout, held) == forced
        np.testing.assert_array_equal(buffer_codec.unpack(forced, layout, held)["mask"], sent["mask"])
    else:
        with pytest.raises(errors.NonFiniteError, match="'mask' has come to hold NaN or infinity"):
            buffer_codec.pack(sent, layout, held)
        with pytest.raises(errors.NonFiniteValues):
            buffer_codec.unpack(forced, layout, held)


@given(st.binary(min_size=23, max_size=23))
def test_any_bytes_of_the_right_length_are_read_or_refused(data: bytes) -> None:
    try:
        arrays = buffer_codec.unpack(data, BUFFERS)
    except (errors.NonFiniteValues, errors.NegativeVariance):
        return
    assert buffer_codec.unpack(buffer_codec.pack(arrays, BUFFERS), BUFFERS).keys() == arrays.keys()
    assert buffer_codec.pack(arrays, BUFFERS)[:20] == data[:20]  # of the last three any byte but 0 is true


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[Layout, bytes, bytes]:
    """Buffers before and after, as bytes of any kind: NaN, -0 and all."""
    dtypes = ["bool", "int8", "int64", "float16", "bfloat16", "float32", "float64"]
    shapes = st.sampled_from([(), (0,), (1,), (2, 3)])
    specs = tuple(
        TensorSpec(str(number), draw(shapes), dtype)
        for number, dtype in enumerate(draw(st.lists(st.sampled_from(dtypes), max_size=20)))
    )
    before, after = [], []
    for spec in specs:
        size = spec.size * np.dtype(spec.dtype.replace("bfloat16", "uint16")).itemsize
        before.append(draw(st.binary(min_size=size, max_size=size)))
        after.append(draw(st.sampled_from([before[-1], bytes(size), b"\xff" * size])))
    return Layout((), specs), b"".join(before), b"".join(after)


@given(two_versions())
def test_what_has_not_changed_costs_a_bit_and_comes_back(case: tuple[Layout, bytes, bytes]) -> None:
    layout, before, after = case
    changed = buffer_codec.changes(after, before, layout)
    data = buffer_codec.pack_changes(after, changed, layout)
    assert buffer_codec.unpack_changes(data, before, layout) == after
    count, sent = len(layout.buffers), buffer_codec.pack_changes(after, [True] * len(changed), layout)
    assert buffer_codec.unpack_changes(sent, b"", layout) == after  # by one that has none
    if after == before:
        assert len(data) == (-(-count // 8) + 4 if count else 0)
        assert buffer_codec.unpack_changes(data, before, layout) is before


def test_buffers_of_a_message_that_do_not_fit_are_refused() -> None:
    before = buffer_codec.pack(buffers(), BUFFERS)
    after = buffer_codec.pack(buffers() | {"seen": np.array([False, False, True])}, BUFFERS)
    data = buffer_codec.pack_changes(after, buffer_codec.changes(after, before, BUFFERS), BUFFERS)
    assert data.hex(" ", 1)[:2] == "08" and len(data) == 1 + 4 + 3
    for damaged, held, fault in (
        (data[:4], before, errors.Truncated),
        (data[:-1], before, errors.Truncated),
        (b"", before, errors.Truncated),
        (data + b"\0", before, errors.LengthMismatch),
        (b"\x28" + data[1:], before, errors.UnknownFormat),
        (data[:-1] + b"\0", before, errors.ChecksumMismatch),
        (data, after[:3] + b"\1" + after[4:], errors.ChecksumMismatch),  # of another version
        (data, b"", errors.ReferenceMismatch),
    ):
        with pytest.raises(fault):
            buffer_codec.unpack_changes(damaged, held, BUFFERS)
    with pytest.raises(errors.LengthMismatch):
        buffer_codec.unpack_changes(b"\0", b"", Layout(()))
