"""Replies pulled in threads, so that an upload that breaks off delays neither the others nor the end of a round."""

import queue
import threading
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedpress.server.rounds.sampling import PartOfGrid

MOST = 16
"""Limit of simultaneous pulls."""


class PatientGrid(PartOfGrid):
    """A grid of real nodes, some of which break off while they answer.

    Flower pulls the available replies one after the other, and where the upload of one broke off half-way it asks for
    the rest for three minutes. Here that pull continues beside the next ones, and its replies are kept for the exchange
    that they belong to: orders to train and to evaluate, and those of several tiers, are pulled in turn.

    Args:
        grid: the grid to pull from.
        patience: seconds after which a pull continues in the background.
    """

    def __init__(self, grid: Grid, patience: float = 3.0) -> None:
        super().__init__(grid, lambda: list(grid.get_node_ids()))
        self._patience = patience
        self._pulled: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        self._unclaimed: list[Message] = []  # replies of an exchange that has not pulled since
        self._threads: list[threading.Thread] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that have come, with this pull or an earlier one.

        Raises:
            BaseException: the error of a pull, once.
        """
        wanted, replies = list(message_ids), list[Message]()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < MOST:
            # As a daemon: the end of the process does not wait for it.
            self._threads.append(threading.Thread(target=self._pull, args=(wanted,), daemon=True))
            self._threads[-1].start()
        self._threads[-1].join(self._patience)
        while not self._pulled.empty():
            pulled = self._pulled.get()
            if isinstance(pulled, BaseException):
                raise pulled
            self._unclaimed.append(pulled)
        candidates, self._unclaimed = self._unclaimed, []
        for reply in candidates:
            (replies if reply.metadata.reply_to_message_id in wanted else self._unclaimed).append(reply)
        return replies

    def _pull(self, message_ids: list[str]) -> None:
        try:
            for reply in self._grid.pull_messages(message_ids):
                self._pulled.put(reply)
        except BaseException as error:
            self._pulled.put(error)
