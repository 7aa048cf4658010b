"""What a node is sent of a base: the part after what it has, and no more than the base and two parts for one order."""

from pathlib import Path

import pytest

from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.messages.orders import Answer
from fedpress.server.rounds.base_transfer import SPARE_PARTS, BaseTransfer

NODE, OTHER = 7, 8


@pytest.fixture
def base(tmp_path: Path) -> BaseSource:
    (tmp_path / "a.safetensors").write_bytes(bytes(range(100)))
    return BaseSource(tmp_path, 30)


def asks(base: BaseSource, have: int, ticket: int = 1) -> Answer:
    return Answer(ticket, 0, needs_base=base.sha256, base_bytes=have)


def test_a_node_gets_the_part_after_what_it_has_until_it_no_longer_asks(base: BaseSource) -> None:
    transfer = BaseTransfer(base)
    assert transfer.agreed and transfer.part(NODE) is None
    assert transfer.note(NODE, asks(base, 30))
    part = transfer.part(NODE)
    assert part is not None and (part.offset, part.data, part.is_last) == (30, bytes(range(30, 60)), False)
    assert transfer.part(OTHER) is None
    assert not transfer.note(NODE, Answer(1, 0, b"update")) and transfer.part(NODE) is None


def test_who_asks_for_ever_gets_no_more_and_begins_anew_with_another_order(base: BaseSource) -> None:
    transfer = BaseTransfer(base)
    assert sum(transfer.note(NODE, asks(base, 0)) for _ in range(99)) == base.parts + SPARE_PARTS
    assert transfer.note(OTHER, asks(base, 0))
    assert transfer.note(NODE, asks(base, 0, ticket=2))


def test_another_base_or_none_is_not_sent(base: BaseSource) -> None:
    assert not BaseTransfer(base).note(NODE, Answer(1, 0, needs_base="ab" * 32))
    none = BaseTransfer(None)
    assert not none.agreed and not none.note(NODE, asks(base, 0)) and none.part(NODE) is None
