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

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedpress.compression.ledger import Direction
from fedpress.compression.messages import orders, pieces, records

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
    with_base: Callable[[Message], Message | None] = lambda reply: None,
    refill: Callable[[int], list[Message]] | None = None,
) -> Iterator[Message]:
    """Send `messages` at once, and return an iterator over the replies as they come, until there are enough.

    Every message is billed, also those that come late and do not count. A reply belongs to the node that its order went
    to, whatever it says about its sender.

    Args:
        grid: grid of the nodes.
        clock: clock of `limit`.
        server_round: round that the messages belong to.
        messages: the orders.
        under_way: messages of earlier rounds without a reply; updated in place.
        enough: called after each reply; returns whether it ends the exchange.
        limit: seconds after which the reply to an order no longer counts.
        bill: called with round, node, direction and message, for every message.
        refuse: called with round, node, reason and detail of an order that cannot be delivered, or a reply that is
            not from its node.
        from_the_beginning: called with a node that could not use its delta; returns the order in place of that one.
        with_base: called with a reply that asks for the pretrained base; returns the order in place of that one, with a
            part of it; None: the reply counts as it is.
        refill: called with the number of pending messages; returns orders in place of those answered. Orders then stay
            open from one exchange to the next. None: no order outlives the exchange.
    """
    pending, arrived, late = under_way.pending, under_way.arrived, under_way.late
    answered: dict[str, int] = {}  # nodes of the orders that are answered already, by message id

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
            message_id, sender = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
            closed = late.pop(message_id, None)
            order = pending.pop(message_id, None)
            now_answered = closed or order
            node = now_answered.node if now_answered else answered.get(message_id, sender)
            answered[message_id] = node
            try:
                bill(closed.round if closed else server_round, node, "up", reply)
            except Exception as error:  # its texts are no texts, or the like: it cannot be kept either
                refuse(server_round, node, "malformed", f"{type(error).__name__}: {error}")
                continue
            if order is None:  # it is late, or the same reply again
                continue
            if problem := _foreign(reply, order.node):
                refuse(server_round, order.node, "another sender", problem)
                continue
            records.set_source(reply, order.node)  # of an error, too, which the SuperLink signs for a node that is gone
            arrived.append((order, reply))

    def replies() -> Iterator[Message]:
        resent: Counter[int] = Counter()  # orders from the beginning, by node
        while (pending or arrived) and not enough():
            if not arrived:
                pull()
            again = False
            while arrived and not enough():
                order, reply = arrived.popleft()
                if _asks(reply, orders.NEEDS_MODEL) and resent[order.node] < MAX_RESENT:
                    resent[order.node] += 1
                    push([from_the_beginning(order.node)], order.until)
                    again = True
                elif _asks(reply, orders.NEEDS_BASE) and (with_part := with_base(reply)) is not None:
                    push([with_part], order.until)
                    again = True
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
            if pending and not again:
                clock.wait(min(order.until for order in pending.values()))
        if refill is None:
            under_way.close()

    push(messages, clock.now() + limit)
    return replies()


class Answer(NamedTuple):
    """What has become of a question to a node."""

    reply: Message | None  # to be billed; None: it did not answer, or what came cannot be serialized
    content: RecordDict | None  # of the reply; None: there is an error
    error: str = ""  # why there is no content, safe to be logged


def ask(grid: Grid, messages: list[Message], timeout: float | None) -> dict[int, Answer]:
    """Send a message to each of some nodes, and wait for the answers.

    Args:
        grid: grid of the nodes.
        messages: the messages, each to another node.
        timeout: seconds to wait; None: until all have answered.

    Returns:
        The answer of each node, in the order of the nodes.
    """
    replies = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    answers: dict[int, Answer] = {}
    for reply in replies:
        node = nodes.get(reply.metadata.reply_to_message_id)
        if node is not None and node not in answers:
            answers[node] = _answer(reply, node)
    return {node: answers.get(node, Answer(None, None, "the node did not answer")) for node in sorted(nodes.values())}


def _answer(reply: Message, node: int) -> Answer:
    problem = _foreign(reply, node)
    records.set_source(reply, node)
    try:
        records.serialized_size(reply)
    except Exception as error:  # its texts are no texts, or the like
        return Answer(None, None, f"the reply cannot be read: {records.excerpt(error)}")
    if problem:
        return Answer(reply, None, problem)
    if reply.has_error():
        return Answer(reply, None, records.excerpt(records.reason_of(reply)))
    try:
        return Answer(reply, pieces.join(reply.content))
    except orders.MessageError as error:
        return Answer(reply, None, records.excerpt(error))


def _foreign(reply: Message, node: int) -> str:
    """Return why a reply is not from the node that the order went to; empty: it is, or an error."""
    sender = reply.metadata.src_node_id
    if sender == node or reply.has_error():
        return ""
    return f"the reply says that it is from node {sender}, and the order went to node {node}"


def _asks(reply: Message, entry: str) -> bool:
    answer = None if reply.has_error() else reply.content.get(orders.ANSWER)
    return isinstance(answer, ConfigRecord) and entry in answer
