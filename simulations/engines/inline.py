"""Inline engine: a Flower `Grid` in this process, with persistent worker processes that run the ClientApp.

It runs the same ServerApp and ClientApp as Flower's own engines. Each worker loads the app once and then answers one
message after the other, so data, models and caches stay in memory. Each client's state (`Context.state`) is a file, in
a temporary folder unless another is given. So any worker can run any client, and the result depends neither on their
number nor on the assignment. A record that goes to many clients, such as the model, is serialized once and read
once by each worker.

Time is virtual: a `Network` gives the time of each reply, and deadlines follow `grid.clock`. Without a network, replies
take no time.
"""

import os
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from logging import ERROR, getLogger
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from fedpress.compression.messages import orders, pieces, records
from fedpress.simulations.conditions.faults import DAMAGED, DOUBLED, LATE, LOST, Faults
from fedpress.simulations.conditions.network import Network, VirtualClock
from fedpress.simulations.engines import _flower, client_states, worker_process
from fedpress.simulations.engines.client_grid import ClientGrid, EngineError
from fedpress.simulations.engines.shared_records import SharedRecords
from fedpress.simulations.engines.worker import Worker
from fedpress.simulations.engines.worker_process import RUN_ID, WorkerTask

SHARED_BYTES = 1 << 16
"""Size from which a record goes to the workers once, as a file, and not with every message."""
SHORT_TASK = 5e-3
"""Seconds below which tasks are sent ahead, so that a worker never waits for the pipe."""
SENT_AHEAD = 16
"""Most short tasks that a worker holds. With at most `SMALL_MESSAGE` bytes each, all fit the pipe's buffer: were the
parent to block on a full pipe while the worker blocks on its reply, both would wait for ever."""
SMALL_MESSAGE = 2048
"""Most bytes of a task that is sent ahead."""
MAX_DEATHS = 3
"""Workers that may die one after the other, without a reply in between."""


class SimulatedClock:
    """Virtual clock that jumps to the next reply, or to the end of a wait.

    Args:
        grid: Knows when replies arrive.
    """

    def __init__(self, grid: "InlineGrid") -> None:
        self._grid = grid
        self._time = VirtualClock()

    def now(self) -> float:
        """Return virtual seconds since the run began."""
        return self._time.now()

    def go_to(self, time: float) -> None:
        """Advance to `time`, at which a resumed run goes on."""
        self._time.advance_to(time)

    def wait(self, until: float) -> None:
        """Advance to the arrival of the next reply, or to `until` if that is sooner."""
        arrival = self._grid.next_arrival()
        if arrival is not None:
            self._time.advance_to(max(self.now(), min(arrival, until)))


class Arrival(NamedTuple):
    """Reply, and the virtual time of its arrival."""

    at: float
    reply: Message


class GridState(NamedTuple):
    """State of an engine between two rounds, for checkpoints.

    Attributes:
        now: Virtual time, in seconds.
        sent: Number of messages sent.
        ready: Replies that have arrived or will, by message id.
        struck: Number of faults by kind.
        doubled: Ids of messages whose replies arrive twice.
        seconds: Seconds of the workers by phase.
    """

    now: float = 0.0
    sent: int = 0
    ready: dict[str, Arrival] = {}
    struck: dict[str, int] = {}
    doubled: list[str] = []
    seconds: dict[str, float] = {}


class _Order(NamedTuple):
    """Message under way to a client."""

    message: Message
    sent_at: float  # by the virtual clock
    round: int | None  # of an order to train, where network or faults need it
    struck: frozenset[str]  # kinds of faults that the client has


class InlineGrid(ClientGrid):
    """Grid over worker processes; use it as a context manager.

    Nodes are numbered from 1 in the order of the client indices, whatever the number of workers.

    Args:
        client_app: The ClientApp, as "module:attribute".
        clients: Number of simulated clients.
        workers: Number of processes.
        run_config: The apps' `context.run_config`.
        network: Link and speed of each client; None: replies take no virtual time.
        injected: Faults to inject; None: none.
        examples: Maps a client to the examples it trains on in a round, for `network` and to start long tasks first.
        log_file: File of the workers' Flower log; None: their standard error.
        states: Folder of the clients' states, which then outlive the engine: another engine goes on with them after a
            kill. None: a temporary one.

    Attributes:
        clock: Virtual time.
        seconds: Seconds of all workers by phase: `training`; `client`, its other work (data, model, update); `states`
            and `messages`, reading and writing; `waiting` for a task.

    Raises:
        EngineError: `states` is in use by another run.
        EngineError: The ClientApp cannot be loaded, or the workers keep dying (also raised later, by `pull_messages`).
    """

    def __init__(
        self,
        client_app: str,
        *,
        clients: int,
        workers: int = 2,
        run_config: Mapping[str, UserConfigValue] | None = None,
        network: Network | None = None,
        injected: Faults | None = None,
        examples: Callable[[int], int] | None = None,
        log_file: Path | None = None,
        states: Path | None = None,
    ) -> None:
        super().__init__(clients, workers, _flower.Run.create_empty(RUN_ID))
        _flower.identify(RUN_ID, 1, 0)
        self.clock = SimulatedClock(self)
        self.seconds: Counter[str] = Counter()
        self._network = network
        self._faults = injected
        self._examples = examples
        self._lock = client_states.locked(states) if states else None
        # Inside the folder of states, `client_states.locked` removes it after a kill, too.
        self._folder = tempfile.TemporaryDirectory(prefix=client_states.TEMPORARY, dir=states)
        temporary = Path(self._folder.name)
        self._start = worker_process.WorkerStart(
            client_app,
            clients,
            dict(run_config or {}),
            temporary,
            states or temporary,
            self._lock,
            log_file,
            tuple(sys.path),
            dict(os.environ),
        )
        self._records = SharedRecords(temporary)
        self._queue: deque[WorkerTask] = deque()
        self._tasks: dict[str, WorkerTask] = {}  # under way or queued
        self._orders: dict[str, _Order] = {}  # by message id
        self._ready: dict[str, Arrival] = {}  # by message id
        self._doubled: set[str] = set()  # ids of messages whose replies arrive twice
        self._sent = 0
        self._mean_seconds = 1.0
        self._deaths = 0
        self._workers = [Worker(self._start) for _ in range(workers)]

    def close(self) -> None:
        """Stop the workers and remove the clients' states, unless they have a folder of their own."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
        if self._lock:
            self._lock.close()
        self._folder.cleanup()

    # ---- Flower's Grid ---------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages for the workers and return their ids.

        Raises:
            ValueError: A message goes to a node that does not exist.
        """
        tasks, ids = [], []
        for message in messages:
            client = self._client(message)
            self._sent += 1
            message_id = f"message-{self._sent}"
            records.set_id(message, message_id)
            ids.append(message_id)
            order = self._order(message)
            if self._network and order.round is not None and not self._network.answers(client, order.round):
                continue
            self._orders[message_id] = order
            tasks.append(self._task(message_id, client, order))
        if self._examples:  # long ones first; replies are put in order by the strategy
            weigh = self._examples
            tasks.sort(key=lambda task: -weigh(task.client))
        for task in tasks:
            self._tasks[task.message_id] = task
        self._queue.extend(tasks)
        self._pump()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived by the virtual clock; block for work under way, never for virtual time.

        Raises:
            EngineError: The ClientApp cannot be loaded, or workers keep dying.
        """
        wanted = set(message_ids)
        while self._tasks and (self._network or self._faults or not any(m in self._ready for m in wanted)):
            self._receive()
        now = self.clock.now()
        arrived = sorted(
            (arrival, reply.metadata.src_node_id, message_id)
            for message_id in wanted
            if message_id in self._ready
            for arrival, reply in [self._ready[message_id]]
            if arrival <= now
        )
        replies = []
        for _, _, message_id in arrived:
            reply = self._ready.pop(message_id)[1]
            replies += [reply, reply] if message_id in self._doubled else [reply]
            self._doubled.discard(message_id)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and return the replies.

        Args:
            messages: Orders.
            timeout: Virtual seconds after which later replies are left out; None: wait for all that will arrive.
        """
        pending = set(self.push_messages(messages))
        until = float("inf") if timeout is None else self.clock.now() + timeout
        replies: list[Message] = []
        while pending:
            for reply in self.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if not pending or self.clock.now() >= until or self.next_arrival() == float("inf"):
                break
            self.clock.wait(until)
        return replies

    def states_digest(self) -> str:
        """Return the SHA-256 over all clients' states."""
        return client_states.digest(self._start.states, self._clients)

    def state(self) -> GridState:
        """Return the state for a checkpoint; wait for work under way."""
        while self._tasks:
            self._receive()
        struck = dict(self._faults.struck) if self._faults else {}
        return GridState(self.clock.now(), self._sent, self._ready, struck, sorted(self._doubled), dict(self.seconds))

    def restore(self, state: GridState) -> None:
        """Take over the state of an earlier engine."""
        self.clock.go_to(state.now)
        self._sent, self._ready = state.sent, state.ready
        self._doubled = set(state.doubled)
        self.seconds.update(state.seconds)
        if self._faults:
            self._faults.struck = Counter(state.struck)

    def next_arrival(self) -> float | None:
        """Return the virtual time at which the next reply arrives; None while clients are at work on it.

        Infinite if no reply is on its way. Replies that have arrived and were not pulled do not count: they are
        another tier's, whose exchange comes later.
        """
        if self._tasks:
            return None
        now = self.clock.now()
        return min((arrival for arrival, _ in self._ready.values() if arrival > now), default=float("inf"))

    # ---- work ------------------------------------------------------------------------------------------------------

    def _order(self, message: Message) -> _Order:
        """Return the record of an order that is sent now, with the faults of its client."""
        number, struck = None, frozenset[str]()
        if message.metadata.message_type == "train" and (self._network or self._faults):
            number = orders.read_order(message.content).round
            if self._faults:
                struck = self._faults.of(message.metadata.dst_node_id - 1, number)
        return _Order(message, self.clock.now(), number, struck)

    def _task(self, message_id: str, client: int, order: _Order) -> WorkerTask:
        small, message = RecordDict(), order.message
        shared: list[tuple[str, str]] = []
        for key, record in message.content.items():
            if not isinstance(record, MetricRecord) and self._goes_to_many(key, record):
                shared.append((key, self._records.use(record)))
            else:
                small[key] = record
        slim = Message(small, metadata=message.metadata)  # type: ignore[call-overload]
        data = records.message_to_bytes(slim)
        return WorkerTask(message_id, client, data, tuple(message.content), tuple(shared), order.struck)

    @staticmethod
    def _goes_to_many(key: str, record: ArrayRecord | ConfigRecord) -> bool:
        if isinstance(record, ArrayRecord):
            return records.values_size(record) >= SHARED_BYTES
        return pieces.is_piece(key) and len(pieces.data_of(record)) >= SHARED_BYTES

    def _pump(self) -> None:
        """Hand queued tasks to the workers: one each, and more ahead if they are short and small."""
        for level in range(1, SENT_AHEAD + 1):
            for worker in self._workers:
                if self._queue and len(worker.under_way) < level:
                    worker.send(self._queue.popleft())
            ahead = self._mean_seconds < SHORT_TASK and self._queue and len(self._queue[0].message) <= SMALL_MESSAGE
            if not ahead:
                break

    def _receive(self) -> None:
        """Wait for a reply of any worker, and process it."""
        ready = connection.wait([worker.pipe for worker in self._workers])
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            try:
                while worker.pipe.poll():
                    self._take(worker, worker.pipe.recv())
            except (EOFError, OSError):
                self._replace(worker)
        self._pump()

    def _take(self, worker: Worker, news: Any) -> None:
        if isinstance(news, str):
            raise EngineError(f"the ClientApp {self._start.client_app!r} cannot be loaded:\n{news}")
        worker.under_way.remove(news.message_id)
        self._deaths = 0
        self.seconds.update(news.seconds_by_phase)
        self._mean_seconds = 0.9 * self._mean_seconds + 0.1 * news.seconds
        reply = records.message_from_bytes(news.reply)
        self._finish(news.message_id, reply)

    def _finish(self, message_id: str, reply: Message) -> None:
        task = self._tasks.pop(message_id)
        for _, name in task.shared:
            self._records.release(name)
        order = self._orders.pop(message_id)
        seconds = 0.0
        if self._network and order.round is not None:
            seconds = self._network.seconds(
                client=task.client,
                round=order.round,
                down_bytes=records.serialized_size(order.message),
                examples=self._examples(task.client) if self._examples else 0,
                up_bytes=records.serialized_size(reply),
                start=order.sent_at,
            )
        if self._faults and order.round is not None:
            self._faults.struck.update(order.struck)
            if LOST in order.struck:
                return
            if DAMAGED in order.struck:
                reply = self._faults.damaged(reply, task.client, order.round)
            if DOUBLED in order.struck:
                self._doubled.add(message_id)
            if LATE in order.struck:
                seconds += self._faults.chances.late_seconds
        self._ready[message_id] = Arrival(order.sent_at + seconds, reply)

    def _replace(self, dead: Worker) -> None:
        """Answer for a worker that died, with an error for each message it held, and start another.

        Raises:
            EngineError: `MAX_DEATHS` workers died without a reply in between.
        """
        dead.stop()
        self._deaths += 1
        getLogger("flwr").log(ERROR, "a worker died (exit code %s)", dead.process.exitcode)
        for message_id in list(dead.under_way):
            order = self._orders[message_id].message
            reason = f"the worker process died with exit code {dead.process.exitcode}"
            self._finish(message_id, Message(Error(_flower.ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=order))
        self._workers.remove(dead)
        if self._deaths >= MAX_DEATHS:
            raise EngineError(
                f"{self._deaths} workers died one after the other, the last with exit code {dead.process.exitcode}; "
                "out of memory, most likely: try fewer workers"
            )
        self._workers.append(Worker(self._start))


def run(server_app: ServerApp, grid: Grid, run_config: Mapping[str, UserConfigValue] | None = None) -> None:
    """Run a ServerApp on a grid, as Flower's engines do.

    Args:
        server_app: The ServerApp.
        grid: The grid.
        run_config: Its `context.run_config`.
    """
    context = Context(run_id=RUN_ID, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config or {}))
    server_app(grid, context)
