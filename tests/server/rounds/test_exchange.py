"""A node that is gone: Flower's SuperLink answers in its place, in its own name."""

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from tests.server.deserted import NODE, Deserted, order

from fedpress.server.rounds import exchange


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)


def test_its_error_is_that_of_the_node() -> None:
    billed: list[tuple[int, str]] = []
    replies = exchange.exchange(
        Deserted(),
        exchange.WallClock(),
        1,
        [order()],
        exchange.UnderWay(),
        enough=lambda: False,
        limit=10.0,
        bill=lambda _round, node, direction, _message: billed.append((node, direction)),
        refuse=lambda *_: None,
        from_the_beginning=lambda _: order(),
    )
    (reply,) = replies
    assert reply.has_error() and reply.metadata.src_node_id == NODE != SUPERLINK_NODE_ID
    assert billed == [(NODE, "down"), (NODE, "up")]
