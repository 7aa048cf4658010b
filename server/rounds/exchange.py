"""Exchange of messages: pushed at once, and pulled until a round has enough replies or its time is up.

Flower's own strategies block until every reply is in; here a round can end at a deadline or once enough replies are in,
and later replies are still pulled and billed. With a buffer, orders stay open over the rounds, and each reply makes
room for another order.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedpress.compression.ledger import Direction
from fedpress.compression.messages import orders, records

MAX_RESENT = 2
"""Limit per round and node of resending the model in another form, where the node could not use a delta."""


class Clock(Protocol):
    """Source of the time for deadlines."""

    def now(self) -> float:
        """Return seconds since a fixed moment."""

    def wait(self, until: float) -> None:
        """Wait for news from the grid, but not beyond the time `until`."""


class WallClock:
    """Real time; the grid is polled every `interval` seconds."""

    def __init__(self, interval: float = 0.5) -> None:
        self._interval = interval

    def now(self) -> float:
        """Return seconds since a fixed moment."""
        return time.monotonic()

    def wait(self, until: float) -> None:
        """Sleep for one interval, or until the time `until` when that is sooner."""
        time.sleep(max(0.0, min(self._interval, until - self.now())))


class OpenMessage(NamedTuple):
    """A message whose reply has not been pulled."""

    node: int
    round: int
    until: float = math.inf  # by the clock; a later reply does not count


@dataclass
class UnderWay:
    """Messages under way between the server and the nodes.

    Attributes:
        pending: messages whose replies may still count, by message id.
        arrived: replies that were pulled and not processed yet, in the order of their arrival.
        late: messages whose replies no longer count, and are billed when they come.
    """

    pending: dict[str, OpenMessage] = field(default_factory=dict)
    arrived: deque[tuple[OpenMessage, Message]] = field(default_factory=deque)
    late: dict[str, OpenMessage] = field(default_factory=dict)

    def nodes(self) -> set[int]:
        """Return the nodes whose replies are pending, or not processed yet."""
        return {order.node for order in (*self.pending.values(), *(order for order, _ in self.arrived))}

    def close(self) -> None:
        """Count no further reply: all that is pending becomes late."""
        self.late.update(self.pending)
        self.pending.clear()
        self.arrived.clear()


def exchange(
    grid: Grid,
    clock: Clock,
    server_round: int,
    messages: list[Message],
    under_way: UnderWay,
    *,
    enough: Callable[[], bool],
    limit: float,
    bill: Callable[[int, int, Direction, Message], None],
    refuse: Callable[[int, int, str, str], None],
    from_the_beginning: Callable[[int], Message],
    refill: Callable[[int], list[Message]] | None = None,
) -> Iterator[Message]:
    """Send `messages` at once, and return an iterator over the replies as they come, until there are enough.

    Every message is billed, also those that come late and do not count.

    Args:
        grid: grid of the nodes.
        clock: clock of `limit`.
        server_round: round that the messages belong to.
        messages: the orders.
        under_way: messages of earlier rounds without a reply; updated in place.
        enough: called after each reply; returns whether it ends the exchange.
        limit: seconds after which the reply to an order no longer counts.
        bill: called with round, node, direction and message, for every message.
        refuse: called with round, node, reason and detail of an order that cannot be delivered.
        from_the_beginning: called with a node that could not use its delta; returns the order in place of that one.
        refill: called with the number of pending messages; returns orders in place of those answered. Orders then stay
            open from one exchange to the next. None: no order outlives the exchange.
    """
    pending, arrived, late = under_way.pending, under_way.arrived, under_way.late

    def push(messages: list[Message], until: float) -> None:
        for message in messages:
            bill(server_round, message.metadata.dst_node_id, "down", message)
        for message, message_id in zip(messages, grid.push_messages(messages) if messages else [], strict=True):
            node = message.metadata.dst_node_id
            if message_id:
                pending[message_id] = OpenMessage(node, server_round, until)
            else:
                refuse(server_round, node, "unreachable", "the message could not be delivered")

    def pull() -> None:
        for reply in grid.pull_messages([*pending, *late]):
            message_id = reply.metadata.reply_to_message_id
            if (closed := late.pop(message_id, None)) is not None:
                bill(closed.round, closed.node, "up", reply)
                continue
            order = pending.pop(message_id, None)
            if order is not None and reply.has_error():
                # The SuperLink answers for a node that is gone, in its own name.
                records.set_source(reply, order.node)
            bill(server_round, reply.metadata.src_node_id, "up", reply)
            if order is not None:  # else the same reply again
                arrived.append((order, reply))

    def replies() -> Iterator[Message]:
        resent: Counter[int] = Counter()  # orders from the beginning, by node
        while (pending or arrived) and not enough():
            if not arrived:
                pull()
            while arrived and not enough():
                order, reply = arrived.popleft()
                if _needs_model(reply) and resent[order.node] < MAX_RESENT:
                    resent[order.node] += 1
                    push([from_the_beginning(order.node)], order.until)
                else:
                    yield reply
            if enough():
                break
            now = clock.now()
            late.update({message_id: order for message_id, order in pending.items() if order.until <= now})
            for message_id in late.keys() & pending.keys():
                del pending[message_id]
            if refill:
                push(refill(len(pending)), now + limit)
            if pending:
                clock.wait(min(order.until for order in pending.values()))
        if refill is None:
            under_way.close()

    push(messages, clock.now() + limit)
    return replies()


def _needs_model(reply: Message) -> bool:
    answer = None if reply.has_error() else reply.content.config_records.get(orders.ANSWER)
    return answer is not None and "needs-model" in answer
