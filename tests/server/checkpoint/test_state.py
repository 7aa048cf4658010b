"""Packed states: whole with their types, or refused."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray
from tests.server.comparable import comparable

from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.state import CheckpointError, DamagedCheckpoint


class Leaf(NamedTuple):
    """State of a part of a part."""

    array: NDArray[Any]
    text: str
    data: bytes


@dataclass
class Part:
    """What a part keeps, one field for each kind of value."""

    number: int = 3
    real: float = 0.1
    absent: Leaf | None = None
    leaf: Leaf | None = None
    by_number: dict[int, Leaf] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=dict)
    pair: tuple[str, bytes] = ("", b"")
    row: tuple[int, ...] = ()
    waiting: deque[tuple[Leaf, int]] = field(default_factory=deque)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    content: RecordDict = field(default_factory=RecordDict)
    anything: Any = None


def part() -> Part:
    leaf = Leaf(np.arange(6.0).reshape(2, 3), "ü", b"\0same")
    return Part(
        leaf=leaf,
        by_number={7: leaf, 2**62: Leaf(np.empty(0, np.int32), "", b"")},
        by_name={"a/b": [1, 2]},
        pair=("x", b"\0same"),
        row=(1, 2, 3),
        waiting=deque([(leaf, 1)]),
        tensors={"step": torch.zeros(()), "mean": torch.ones(3)},
        content=RecordDict({"metrics": MetricRecord({"loss": 0.5})}),
        anything=[None, True, "text"],
    )


def state() -> dict[str, Any]:
    return {"part": Leaf(np.arange(6.0).reshape(2, 3), "ü", b"data"), "other": {"x": 0.1}}


def test_what_is_packed_is_unpacked_with_its_types() -> None:
    data = states.pack({"first": part(), "second": part().leaf})
    saved = states.unpack(data)
    first, second = saved.part("first", Part), saved.part("second", Leaf)
    assert comparable(first) == comparable(part()) and comparable(second) == comparable(part().leaf)
    assert second.array.flags.writeable and data.count(b"\0same") == 1  # equal bytes stand there once


@pytest.mark.parametrize(("name", "kind"), [("none", Leaf), ("other", Leaf), ("part", Part)])
def test_a_part_that_is_not_there_or_of_another_type_is_named(name: str, kind: Any) -> None:
    with pytest.raises(CheckpointError, match=f"its part '{name}' is no {kind.__name__}"):
        states.unpack(states.pack(state())).part(name, kind)


def test_any_damage_is_found() -> None:
    good = states.pack(state())
    for position in range(len(good)):
        for bad in (good[:position], good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :]):
            with pytest.raises(CheckpointError):
                states.unpack(bad)
    with pytest.raises(DamagedCheckpoint):
        states.unpack(good + b"\0")


@pytest.mark.slow
def test_a_state_of_any_size_can_be_read_again() -> None:
    """A safetensors header has 100 MB at most, and is written beyond that."""
    data = states.pack({"part": Leaf(np.zeros(1), "ü" * 20_000_000, b"")})
    assert len(data) > 110_000_000
    assert len(states.unpack(data).part("part", Leaf).text) == 20_000_000
