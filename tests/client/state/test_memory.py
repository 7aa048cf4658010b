"""A client's memory comes back from its stored form as it was, and another format is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client.state.memory import Memory
from fedpress.client.state.replica import ReplicaWithUndo
from fedpress.client.state.stores import StateError, Stored
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.replica import FixedPoint, Replica
from fedpress.compression.tensors.update import Sparse

LAYOUT = Layout(
    (TensorSpec("a", (5, 7), "float32"), TensorSpec("b", (13,), "float16")),
    (TensorSpec("mean", (3,), "float32"),),
    (("alias", "a"),),
)


def replica(undo: bool) -> ReplicaWithUndo:
    held = Replica(9, FixedPoint((-20, -18)), np.arange(LAYOUT.size, dtype=np.int32), b"buffers")
    if not undo:
        return ReplicaWithUndo(held)
    return ReplicaWithUndo(held, 8, Sparse(np.array([3, 40]), np.array([1.0, -2.0], np.float32), LAYOUT.size))


def same(one: Any, other: Any) -> None:
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, tuple) and hasattr(one, "_fields"):
        for first, second in zip(one, other, strict=True):
            same(first, second)
    else:
        assert one == other


@given(
    ticket=st.integers(0, 2**62),
    reply=st.binary(max_size=40),
    held=st.sampled_from([None, False, True]),
    masked=st.booleans(),
    lost_state=st.booleans(),
    mask_version=st.integers(0, 2**40),
    discarded=st.floats(-1e300, 1e300),
)
def test_what_is_stored_comes_back(
    ticket: int, reply: bytes, held: bool | None, masked: bool, lost_state: bool, mask_version: int, discarded: float
) -> None:
    layout = LAYOUT.within(Mask.of(np.arange(LAYOUT.size) % 3 > 0)) if masked else LAYOUT
    memory = Memory(
        {"residual": np.ones(layout.size, np.float32), "inner.age": np.arange(4)}, ticket, layout, reply,
        None if held is None else replica(held), lost_state, mask_version, discarded,
    )  # fmt: skip
    same(Memory.of(memory.stored()), memory)


def stored() -> Stored:
    return Memory({"residual": np.ones(LAYOUT.size, np.float32)}, 4, LAYOUT, b"reply", replica(True)).stored()


def test_another_format_is_refused() -> None:
    with pytest.raises(StateError, match="has format 4, this fedpress reads 1"):
        Memory.of(stored()._replace(meta={**stored().meta, "memory": "4"}))
    with pytest.raises(StateError, match="has format None"):
        Memory.of(Stored({}, {}))


@pytest.mark.parametrize("key", ["ticket", "mask_version", "tensors", "grid", "version", "previous_version"])
def test_a_part_that_is_malformed_is_refused(key: str) -> None:
    with pytest.raises(StateError, match="cannot be read: .*remove it to start anew"):
        Memory.of(stored()._replace(meta={**stored().meta, key: "x"}))


@pytest.mark.parametrize("name", ["undo.positions", "undo.values", "undo.buffers", "buffers"])
def test_an_array_that_is_missing_is_named(name: str) -> None:
    arrays = {other: array for other, array in stored().arrays.items() if other != name}
    with pytest.raises(StateError, match=name):
        Memory.of(stored()._replace(arrays=arrays))
