"""Replies pulled one by one, in threads: what is wrong with one concerns the node that its order went to, and no other.

Neither an upload that breaks off delays the others, nor does a reply that cannot be read lose them.
"""

import queue
import threading
import time
from collections.abc import Iterable
from logging import WARNING
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore import log

from fedpress.compression.messages import records
from fedpress.server import _flower
from fedpress.server._flower import Offered
from fedpress.server.rounds.sampling import PartOfGrid

MOST = 16
"""Limit of simultaneous pulls; those that have broken off do not count."""
AT_ONCE = 20
"""Limit of orders that are asked for in one call, where each takes a request of its own."""
IN_A_ROW = 64
"""Limit of orders that one thread asks for one after the other, where that takes no request: of a grid in memory."""
POLL_SECONDS = 0.5
"""Interval between two looks for replies in `send_and_receive`."""


class _Pull(NamedTuple):
    """A reply that is being pulled."""

    thread: threading.Thread
    began: float  # by the monotonic clock


class PatientGrid(PartOfGrid):
    """A grid of real nodes, some of which break off while they answer, or answer nonsense.

    Flower pulls the available replies one after the other, waits for three minutes where the upload of one broke off
    half-way, and raises where one is no message, with which all others are lost. Here each is pulled by itself: one
    that takes long continues beside the next ones, and one that raises becomes an error, in place of the reply. Replies
    are kept for the exchange that they belong to: orders to train and to evaluate, and those of several tiers, are
    pulled in turn. The order that a reply was pulled for is the one that it answers, whatever it says.

    Args:
        grid: the grid to pull from.
        patience: seconds after which a pull continues in the background.

    Attributes:
        most: largest size of a reply in bytes, where that is above `_flower.MOST_FETCHED`.
    """

    def __init__(self, grid: Grid, patience: float = 3.0) -> None:
        super().__init__(grid, lambda: list(grid.get_node_ids()))
        self._patience = patience
        self.most = 0
        self._pulled: queue.SimpleQueue[tuple[str, Message | BaseException]] = queue.SimpleQueue()
        self._unclaimed: list[tuple[str, Message]] = []  # replies of an exchange that has not pulled since
        self._pulls: list[_Pull] = []
        self._in_turn = False  # whether the replies that are there cannot be listed: each order takes a request
        self._last = ""  # order that was asked for last, in turn

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that have come, with this pull or an earlier one.

        Raises:
            BaseException: the grid itself has failed, not one reply.
        """
        wanted = list(message_ids)
        for group in self._offered(wanted):
            self._start(group)
        for thread, began in self._pulls:
            thread.join(max(0.0, began + self._patience - time.monotonic()))
        while not self._pulled.empty():
            order, pulled = self._pulled.get()
            self._unclaimed.append((order, pulled if isinstance(pulled, Message) else self._error(order, pulled)))
        candidates, self._unclaimed = self._unclaimed, []
        replies = []
        for order, reply in candidates:
            if order in wanted:
                replies.append(reply)
            else:
                self._unclaimed.append((order, reply))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and return the replies.

        Args:
            messages: the messages.
            timeout: seconds to wait for replies; None: until all are in.
        """
        pending = {message_id for message_id in self.push_messages(list(messages)) if message_id}
        until = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and time.monotonic() < until:
            arrived = self.pull_messages(pending)
            pending -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if pending:
                time.sleep(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
        return replies

    def _offered(self, wanted: list[str]) -> list[list[Offered]]:
        """Return the replies that are there, or may be, in groups for a thread each."""

        def alone(order: str) -> Offered:
            return Offered(order, lambda: self._grid.pull_messages([order]))

        if not self._in_turn:
            try:
                replies = _flower.offered(self._grid, wanted, self.most)
            except Exception as error:
                list(self._grid.get_node_ids())  # raises where it is not the replies that are wrong
                log(WARNING, "replies cannot be listed, and are asked for one by one: %s", records.excerpt(error))
                self._in_turn = True
            else:
                if replies is not None:
                    return [[reply] for reply in replies]
                each = [alone(order) for order in wanted]
                return [each[start : start + IN_A_ROW] for start in range(0, len(each), IN_A_ROW)]
        first = wanted.index(self._last) + 1 if self._last in wanted else 0
        chosen = (wanted[first:] + wanted[:first])[:AT_ONCE]
        self._last = chosen[-1] if chosen else ""
        return [[alone(order)] for order in chosen]

    def _start(self, group: list[Offered]) -> None:
        """Pull replies in a thread, once there is room for another one."""
        while True:
            self._pulls = [each for each in self._pulls if each.thread.is_alive()]
            young = [each for each in self._pulls if each.began + self._patience > time.monotonic()]
            if len(young) < MOST:
                break
            young[0].thread.join(0.01)
        # As a daemon: the end of the process does not wait for it.
        thread = threading.Thread(target=self._pull, args=(group,), daemon=True)
        self._pulls.append(_Pull(thread, time.monotonic()))
        thread.start()

    def _pull(self, group: list[Offered]) -> None:
        for order, pull in group:
            try:
                for reply in pull():
                    if reply.metadata.reply_to_message_id != order:
                        reply = _flower.error_reply(order, "the reply says that it answers another message")
                    self._pulled.put((order, reply))
            except BaseException as error:
                self._pulled.put((order, error))

    def _error(self, order: str, error: BaseException) -> Message:
        """Return an error in place of a reply that could not be pulled.

        Raises:
            BaseException: `error`, where the grid does not answer either.
        """
        if not isinstance(error, Exception):
            raise error
        try:
            list(self._grid.get_node_ids())
        except Exception:
            raise error from None
        return _flower.error_reply(order, f"the reply cannot be read: {type(error).__name__}: {records.excerpt(error)}")


def patient(grid: Grid, most: int = 0) -> Grid:
    """Return a grid of real nodes as a `PatientGrid`; a simulation's, which has a clock of its own, as it is.

    Args:
        grid: the grid.
        most: largest size of a reply in bytes, as the model needs it.
    """
    if getattr(grid, "clock", None) is not None:
        return grid
    made = grid if isinstance(grid, PatientGrid) else PatientGrid(grid)
    made.most = max(made.most, most)
    return made
