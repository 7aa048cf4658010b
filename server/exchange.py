"""The exchange of messages: pushed, and pulled until a round has what it wants or its time is up.

Flower's own strategies block until every reply is there; here a round can end at a deadline or once enough replies are
in, and what comes later is still pulled and billed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedpress.compression import records
from fedpress.compression.ledger import Direction

MAX_HELP = 2
"""How often in a round a node that cannot use a delta is sent the model in another form."""


class Clock(Protocol):
    """The time that deadlines follow."""

    def now(self) -> float:
        """Return seconds since some fixed moment."""

    def wait(self, until: float) -> None:
        """Wait for news from the grid, at the latest until `until`."""


class WallClock:
    """Real time; asks the grid for news every `interval` seconds."""

    def __init__(self, interval: float = 0.5) -> None:
        self._interval = interval

    def now(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """Sleep for one interval, or until `until` when that is sooner."""
        time.sleep(max(0.0, min(self._interval, until - self.now())))


class Open(NamedTuple):
    """A message whose reply has not been pulled."""

    node: int
    round: int


def exchange(
    grid: Grid,
    clock: Clock,
    server_round: int,
    messages: list[Message],
    *,
    wanted: int,
    limit: float,
    late: dict[str, Open],
    bill: Callable[[int, int, Direction, Message], None],
    refuse: Callable[[int, int, str, str], None],
    from_the_beginning: Callable[[Message], Message],
) -> Iterator[Message]:
    """Send `messages` and yield this round's replies as they come, until `wanted` of them carry an update.

    Every message is billed, those too that come late and count for nothing.

    Args:
        grid: takes and brings the messages.
        clock: what `limit` follows.
        server_round: the round that the messages belong to.
        messages: the orders.
        wanted: how many replies that carry an update end the exchange.
        limit: seconds after which it ends.
        late: orders of earlier rounds whose replies are still to come, by message id; brought up to date.
        bill: is told round, node and direction of every message.
        refuse: is told round, node, reason and detail of an order that cannot be delivered.
        from_the_beginning: makes the order that a node gets in place of one whose delta it could not use.
    """
    pending: dict[str, Open] = {}

    def push(messages: list[Message]) -> None:
        for message in messages:
            bill(server_round, message.metadata.dst_node_id, "down", message)
        for message, message_id in zip(messages, grid.push_messages(messages), strict=True):
            node = message.metadata.dst_node_id
            if message_id:
                pending[message_id] = Open(node, server_round)
            else:
                refuse(server_round, node, "unreachable", "the message could not be delivered")

    push(messages)
    helped: Counter[int] = Counter()  # how often nodes were sent the model from its beginning
    closes, good = clock.now() + limit, 0
    while pending and good < wanted:
        for reply in grid.pull_messages([*pending, *late]):
            message_id = reply.metadata.reply_to_message_id
            earlier = late.pop(message_id, None)
            if earlier is not None:
                bill(earlier.round, earlier.node, "up", reply)
                continue
            node = reply.metadata.src_node_id
            bill(server_round, node, "up", reply)
            if pending.pop(message_id, None) is None:  # the same reply again
                continue
            if _needs_model(reply) and helped[node] < MAX_HELP and good < wanted:
                helped[node] += 1
                push([from_the_beginning(next(m for m in messages if m.metadata.dst_node_id == node))])
                continue
            if good < wanted:  # else it came in the same pull, but too late
                good += _carries_update(reply)
                yield reply
        if not pending or good >= wanted or clock.now() >= closes:
            break
        clock.wait(closes)
    late.update(pending)


def _carries_update(reply: Message) -> bool:
    """Tell whether a reply carries an update, before it is decoded: what an early close counts."""
    answer = None if reply.has_error() else reply.content.config_records.get(records.ANSWER)
    return answer is not None and "update" in answer


def _needs_model(reply: Message) -> bool:
    answer = None if reply.has_error() else reply.content.config_records.get(records.ANSWER)
    return answer is not None and "needs-model" in answer
