"""The inline engine: a Flower `Grid` in this process, with warm worker processes that run the ClientApp.

It runs the same ServerApp and ClientApp as Flower's own engines. Each worker loads the app once and then answers one
message after the other, so data, models and caches stay in memory. What a client keeps (`Context.state`) lies in a
file of its own, in a temporary folder unless another is named, so any worker can run any client, and the result
depends neither on their number nor on who ran what. A record that goes to many clients, such as the model, is
serialized once and read once by each worker.

Time is virtual: a `Network` says how long each reply takes, and deadlines follow `grid.clock`. Without one, replies
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

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from fedpress.compression.messages import orders, records
from fedpress.simulations.conditions.faults import DAMAGED, DOUBLED, LATE, LOST, Faults
from fedpress.simulations.conditions.network import Network, VirtualClock
from fedpress.simulations.engines import _flower, client_states, worker_process
from fedpress.simulations.engines.client_grid import ClientGrid, EngineError
from fedpress.simulations.engines.shared_records import SharedRecords
from fedpress.simulations.engines.worker import Worker
from fedpress.simulations.engines.worker_process import RUN_ID, Task

SHARED_BYTES = 1 << 16
"""A record of at least this size is handed to the workers once, as a file, and not with every message."""
SHORT_TASK = 5e-3
"""Seconds: tasks shorter than this are sent ahead, so that a worker never waits for the pipe."""
SENT_AHEAD = 16
"""How many short tasks a worker may hold. With at most `SMALL_MESSAGE` bytes each, all fit the pipe's own buffer:
were the parent to block on a full pipe while the worker blocks on its reply, both would wait for ever."""
SMALL_MESSAGE = 2048
MAX_DEATHS = 3


class SimulatedClock:
    """Virtual time that jumps to the next reply, or to the end of the wait."""

    def __init__(self, grid: "InlineGrid") -> None:
        self._grid = grid
        self._time = VirtualClock()

    def now(self) -> float:
        """Return virtual seconds since the engine started."""
        return self._time.now()

    def go_to(self, time: float) -> None:
        """Go forward to `time`: where a run goes on."""
        self._time.advance_to(time)

    def wait(self, until: float) -> None:
        """Go to the next reply's arrival, or to `until` when that is sooner."""
        arrival = self._grid.next_arrival()
        if arrival is not None:
            self._time.advance_to(max(self.now(), min(arrival, until)))


class Arrival(NamedTuple):
    """A reply, and when it arrives by the virtual clock."""

    at: float
    reply: Message


class GridState(NamedTuple):
    """What an engine keeps from one round to the next.

    Attributes:
        now: virtual time.
        sent: number of messages.
        ready: replies that have arrived or will, by message id.
        struck: number of faults by kind.
        doubled: ids of messages whose replies arrive twice.
        seconds: of the workers, by what they went into.
    """

    now: float = 0.0
    sent: int = 0
    ready: dict[str, Arrival] = {}
    struck: dict[str, int] = {}
    doubled: list[str] = []
    seconds: dict[str, float] = {}


class _Order(NamedTuple):
    """A message under way to a client."""

    message: Message
    sent_at: float  # by the virtual clock
    round: int | None  # of an order to train, where network or faults ask for it
    struck: frozenset[str]  # faults that strike the client


class InlineGrid(ClientGrid):
    """An in-process grid over `workers` processes; use it as a context manager.

    Nodes are numbered from 1 in the order of the client indices, whatever the number of workers.

    Args:
        client_app: the ClientApp, as "module:attribute".
        clients: number of simulated clients.
        workers: number of processes.
        run_config: what the apps find in `context.run_config`.
        network: link and speed of each client; None: replies take no virtual time.
        injected: faults that strike on purpose.
        examples: how many examples a client trains on in a round, for `network` and to start long tasks first.
        log_file: where the workers write Flower's log; None: their standard error.
        states: folder for what clients keep, which then outlives the engine: another one goes on with it after a kill.
            None: a temporary one.

    Attributes:
        seconds: of all workers by what they went into: `training`; `client`, what a client does beside it (its
            data, the model, the update); `states` and `messages`, read and written; `waiting` for something to do.

    Raises:
        EngineError: `states` is in use by another run.
        EngineError: the ClientApp cannot be loaded, or the workers keep dying (also raised later, by `pull_messages`).
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
        # Beside the states it is found and removed after a kill, too.
        self._folder = tempfile.TemporaryDirectory(prefix=client_states.TEMPORARY, dir=states)
        home = Path(self._folder.name)
        self._start = worker_process.Start(
            client_app,
            clients,
            dict(run_config or {}),
            home,
            states or home,
            self._lock,
            log_file,
            tuple(sys.path),
            dict(os.environ),
        )
        self._records = SharedRecords(home)
        self._queue: deque[Task] = deque()
        self._tasks: dict[str, Task] = {}  # under way or queued
        self._orders: dict[str, _Order] = {}  # by message id
        self._ready: dict[str, Arrival] = {}  # by message id
        self._doubled: set[str] = set()  # ids of messages whose replies arrive twice
        self._sent = 0
        self._mean_seconds = 1.0
        self._deaths = 0
        self._workers = [Worker(self._start) for _ in range(workers)]

    def close(self) -> None:
        """Stop the workers and remove the clients' state, unless it has a folder of its own."""
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
            ValueError: a message goes to a node that does not exist.
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
        """Return the replies that have arrived; waits (really) for work under way, never for virtual time."""
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
        """Push the messages and return all replies that arrive within `timeout` virtual seconds."""
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
        """Return the SHA-256 over the state that every client keeps."""
        return client_states.digest(self._start.states, self._clients)

    def state(self) -> GridState:
        """Return the time, and the replies that have arrived or will, for a checkpoint; waits for work under way."""
        while self._tasks:
            self._receive()
        struck = dict(self._faults.struck) if self._faults else {}
        return GridState(self.clock.now(), self._sent, self._ready, struck, sorted(self._doubled), dict(self.seconds))

    def restore(self, state: GridState) -> None:
        """Take up a state."""
        self.clock.go_to(state.now)
        self._sent, self._ready = state.sent, state.ready
        self._doubled = set(state.doubled)
        self.seconds.update(state.seconds)
        if self._faults:
            self._faults.struck = Counter(state.struck)

    def next_arrival(self) -> float | None:
        """Return when the next reply arrives, None while that is still being worked out.

        Infinite when no reply is on its way. Those that have arrived and were not pulled are somebody else's: another
        tier's, whose exchange has its turn later.
        """
        if self._tasks:
            return None
        now = self.clock.now()
        return min((arrival for arrival, _ in self._ready.values() if arrival > now), default=float("inf"))

    # ---- work ------------------------------------------------------------------------------------------------------

    def _order(self, message: Message) -> _Order:
        """Return an order to be sent now, and what strikes the client that gets it."""
        number, struck = None, frozenset[str]()
        if message.metadata.message_type == "train" and (self._network or self._faults):
            number = orders.read_order(message.content).round
            if self._faults:
                struck = self._faults.of(message.metadata.dst_node_id - 1, number)
        return _Order(message, self.clock.now(), number, struck)

    def _task(self, message_id: str, client: int, order: _Order) -> Task:
        small, shared, message = RecordDict(), [], order.message
        for key, record in message.content.items():
            if isinstance(record, ArrayRecord) and record.count_bytes() >= SHARED_BYTES:
                shared.append((key, self._records.use(record)))
            else:
                small[key] = record
        slim = Message(small, metadata=message.metadata)  # type: ignore[call-overload]
        data = records.message_to_bytes(slim)
        return Task(message_id, client, data, tuple(message.content), tuple(shared), order.struck)

    def _pump(self) -> None:
        """Hand queued tasks to the workers: one each, more ahead when they are short and small."""
        for level in range(1, SENT_AHEAD + 1):
            for worker in self._workers:
                if self._queue and len(worker.under_way) < level:
                    worker.send(self._queue.popleft())
            ahead = self._mean_seconds < SHORT_TASK and self._queue and len(self._queue[0].message) <= SMALL_MESSAGE
            if not ahead:
                break

    def _receive(self) -> None:
        """Wait for news from any worker and take it in."""
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
        """Answer for a worker that died, with an error for each message it held, and start another."""
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
    """Run a ServerApp on the grid, as Flower's engines do."""
    context = Context(run_id=RUN_ID, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config or {}))
    server_app(grid, context)
