"""The exchange of messages: pushed, and pulled until a round has what it wants or its time is up.

Flower's own strategies block until every reply is there; here a round can end at a deadline or once enough replies are
in, and what comes later is still pulled and billed. With a buffer, orders stay open over the rounds, and each reply
makes room for another order.
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


class OpenMessage(NamedTuple):
    """A message whose reply has not been pulled."""

    node: int
    round: int
    until: float = math.inf  # by the clock; what comes later does not count


@dataclass
class UnderWay:
    """What is under way between the server and the nodes.

    Attributes:
        pending: messages whose replies are waited for, by message id.
        arrived: replies that were pulled and not handed on yet, in the order of their arrival.
        late: messages whose replies do not count any more, and are billed when they come.
    """

    pending: dict[str, OpenMessage] = field(default_factory=dict)
    arrived: deque[tuple[OpenMessage, Message]] = field(default_factory=deque)
    late: dict[str, OpenMessage] = field(default_factory=dict)

    def nodes(self) -> set[int]:
        """Return the nodes whose replies are waited for, or were not handed on yet."""
        return {order.node for order in (*self.pending.values(), *(order for order, _ in self.arrived))}

    def close(self) -> None:
        """Wait for nothing any more."""
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

    Every message is billed, those too that come late and count for nothing.

    Args:
        grid: takes and brings the messages.
        clock: what `limit` follows.
        server_round: the round that the messages belong to.
        messages: the orders.
        under_way: what was sent and did not come back in earlier rounds; brought up to date.
        enough: asked after each reply: does it end the exchange?
        limit: seconds after which the reply to an order counts no more.
        bill: is told round, node and direction of every message.
        refuse: is told round, node, reason and detail of an order that cannot be delivered.
        from_the_beginning: makes the order that a node gets in place of one whose delta it could not use.
        refill: is told how many are under way, and makes the orders that take the place of those answered; orders
            then stay open from one exchange to the next. None: no order outlives the exchange.
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
                # For a node that is gone the SuperLink answers, in its own name.
                records.set_source(reply, order.node)
            bill(server_round, reply.metadata.src_node_id, "up", reply)
            if order is not None:  # else the same reply again
                arrived.append((order, reply))

    def replies() -> Iterator[Message]:
        resent: Counter[int] = Counter()  # how often nodes were sent the model from its beginning
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
