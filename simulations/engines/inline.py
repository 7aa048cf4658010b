"""The inline engine: a Flower `Grid` in this process, with warm worker processes that run the ClientApp.

It runs the same ServerApp and ClientApp as Flower's own engines. Each worker loads the app once and then answers one
message after the other, so data, models and caches stay in memory. What a client keeps (`Context.state`) lies in a
file of its own, in a temporary folder unless another is named, so any worker can run any client, and the result
depends neither on their number nor on who ran what. A record that goes to many clients, such as the model, is
serialized once and read once by each worker.

Time is virtual: a `Network` says how long each reply takes, and deadlines follow `grid.clock`. Without one, replies
take no time.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import ERROR, getLogger
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfigValue
from flwr.serverapp import Grid, ServerApp

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import orders, records
from fedpress.server.checkpoint.state import State, as_array
from fedpress.simulations.conditions.faults import DAMAGED, DOUBLED, LATE, LOST, Faults
from fedpress.simulations.conditions.network import Network, VirtualClock
from fedpress.simulations.engines import _flower, client_states, worker_process
from fedpress.simulations.engines.client_grid import ClientGrid
from fedpress.simulations.engines.worker_process import KEPT_RECORDS, RUN_ID, Task

SHARED_BYTES = 1 << 16
"""A record of at least this size is handed to the workers once, as a file, and not with every message."""
SHORT_TASK = 5e-3
"""Seconds: tasks shorter than this are sent ahead, so that a worker never waits for the pipe."""
SENT_AHEAD = 16
"""How many short tasks a worker may hold. With at most `SMALL_MESSAGE` bytes each, all fit the pipe's own buffer:
were the parent to block on a full pipe while the worker blocks on its reply, both would wait for ever."""
SMALL_MESSAGE = 2048
IMPORTED_ONCE = ["flwr.clientapp", "torch", "fedpress.client.app", "fedpress.simulations.runs.workload"]
"""What nearly every ClientApp needs. Imported by one process that all workers are forked from, so that a worker starts
in milliseconds and not in seconds."""
TUNABLES = "GLIBC_TUNABLES"
"""The environment variable that glibc reads at the start of a process; other systems do not."""
MAX_DEATHS = 3
RECORDS = "fedpress-"
"""Begins the name of the folder for shared records."""
LOCK_SECONDS = 10.0
"""How long to wait for what is left of a killed run: its workers end by themselves, at once."""


class EngineError(FedpressError):
    """The engine cannot go on: the ClientApp does not load, or the workers keep dying."""


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
        phases: seconds of all workers by what they went into: `training`; `client`, what a client does beside it (its
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
        self.phases: Counter[str] = Counter()
        self._network = network
        self._faults = injected
        self._examples = examples
        self._lock = locked(states) if states else None
        # Beside the states it is found and removed after a kill, too.
        self._folder = tempfile.TemporaryDirectory(prefix=RECORDS, dir=states)
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
        self._files: OrderedDict[int, tuple[ArrayRecord, str]] = OrderedDict()  # id -> the record itself, its file
        self._references: dict[str, int] = {}  # file -> messages under way that need it
        self._queue: deque[Task] = deque()
        self._tasks: dict[str, Task] = {}  # under way or queued
        self._meta: dict[str, tuple[Message, float]] = {}  # message id -> order (without content), when it was sent
        self._ready: dict[str, tuple[float, Message]] = {}  # message id -> arrival, reply
        self._doubled: set[str] = set()  # ids of messages whose replies arrive twice
        self._sent = 0
        self._mean_seconds = 1.0
        self._deaths = 0
        self._workers = [_Worker(self._start) for _ in range(workers)]

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
            if self._network and not self._answers(self._network, message):
                continue
            self._meta[message_id] = (message, self.clock.now())
            tasks.append(self._task(message_id, client, message))
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

    def saved(self) -> State:
        """Return the time, and the replies that have arrived or will, for a checkpoint; waits for work under way."""
        while self._tasks:
            self._receive()
        arrays = {
            message_id: as_array(records.message_to_bytes(reply)) for message_id, (_, reply) in self._ready.items()
        }
        arrivals = {message_id: arrival for message_id, (arrival, _) in self._ready.items()}
        struck = dict(self._faults.struck) if self._faults else {}
        doubled = sorted(self._doubled)
        return State(
            arrays,
            {
                "now": self.clock.now(),
                "sent": self._sent,
                "arrivals": arrivals,
                "struck": struck,
                "doubled": doubled,
                "phases": dict(self.phases),
            },
        )

    def restore(self, state: State) -> None:
        """Take up what `saved` returned."""
        self.clock.go_to(state.meta["now"])
        self._sent = state.meta["sent"]
        self._doubled = set(state.meta["doubled"])
        self.phases.update(state.meta.get("phases", {}))
        if self._faults:
            self._faults.struck = Counter(state.meta["struck"])
        for message_id, arrival in state.meta["arrivals"].items():
            reply = records.message_from_bytes(state.arrays[message_id].tobytes())
            self._ready[message_id] = (arrival, reply)

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

    def _task(self, message_id: str, client: int, message: Message) -> Task:
        own, shared = RecordDict(), []
        for key, record in message.content.items():
            if isinstance(record, ArrayRecord) and record.count_bytes() >= SHARED_BYTES:
                name = self._file_of(record)
                self._references[name] = self._references.get(name, 0) + 1
                shared.append((key, name))
            else:
                own[key] = record
        slim = Message(own, metadata=message.metadata)  # type: ignore[call-overload]
        data = records.message_to_bytes(slim)
        struck = self._fate(message)
        return Task(message_id, client, data, tuple(message.content), tuple(shared), struck)

    def _fate(self, order: Message) -> frozenset[str]:
        """Return the faults that strike a client that gets this order."""
        if self._faults is None or order.metadata.message_type != "train":
            return frozenset()
        return self._faults.of(order.metadata.dst_node_id - 1, orders.read_order(order.content).round)

    def _file_of(self, record: ArrayRecord) -> str:
        known = self._files.get(id(record))
        if known is not None:
            return known[1]
        name = f"record-{self._sent}-{len(self._references)}"
        (self._start.folder / name).write_bytes(records.content_to_bytes(RecordDict({"record": record})))
        self._files[id(record)] = (record, name)  # holding the record keeps its id from being used again
        while len(self._files) > KEPT_RECORDS:
            _, (_, old) = self._files.popitem(last=False)
            self._drop_file(old)
        return name

    def _drop_file(self, name: str) -> None:
        if not self._references.get(name) and name not in {kept for _, kept in self._files.values()}:
            self._references.pop(name, None)
            (self._start.folder / name).unlink(missing_ok=True)

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

    def _take(self, worker: "_Worker", news: Any) -> None:
        if isinstance(news, str):
            raise EngineError(f"the ClientApp {self._start.client_app!r} cannot be loaded:\n{news}")
        worker.under_way.remove(news.message_id)
        self._deaths = 0
        self.phases.update(news.phases)
        self._mean_seconds = 0.9 * self._mean_seconds + 0.1 * news.seconds
        reply = records.message_from_bytes(news.reply)
        self._finish(news.message_id, reply)

    def _finish(self, message_id: str, reply: Message) -> None:
        task = self._tasks.pop(message_id)
        for _, name in task.shared:
            self._references[name] -= 1
            self._drop_file(name)
        order, sent_at = self._meta.pop(message_id)
        seconds = 0.0
        if self._network and order.metadata.message_type == "train":
            seconds = self._network.seconds(
                client=task.client,
                round=orders.read_order(order.content).round,
                down_bytes=records.serialized_size(order),
                examples=self._examples(task.client) if self._examples else 0,
                up_bytes=records.serialized_size(reply),
                start=sent_at,
            )
        if self._faults:
            for kind in task.faults:
                self._faults.struck[kind] += 1
            if LOST in task.faults:
                return
            if DAMAGED in task.faults:
                reply = self._faults.damaged(reply, task.client, orders.read_order(order.content).round)
            if DOUBLED in task.faults:
                self._doubled.add(message_id)
            if LATE in task.faults:
                seconds += self._faults.chances.late_seconds
        self._ready[message_id] = (sent_at + seconds, reply)

    def _answers(self, network: Network, message: Message) -> bool:
        if message.metadata.message_type != "train":
            return True
        return network.answers(message.metadata.dst_node_id - 1, orders.read_order(message.content).round)

    def _replace(self, dead: "_Worker") -> None:
        """Answer for a worker that died, with an error for each message it held, and start another."""
        dead.stop()
        self._deaths += 1
        getLogger("flwr").log(ERROR, "a worker died (exit code %s)", dead.process.exitcode)
        for message_id in list(dead.under_way):
            order, _ = self._meta[message_id]
            reason = f"the worker process died with exit code {dead.process.exitcode}"
            self._finish(message_id, Message(Error(_flower.ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=order))
        self._workers.remove(dead)
        if self._deaths >= MAX_DEATHS:
            raise EngineError(
                f"{self._deaths} workers died one after the other, the last with exit code {dead.process.exitcode}; "
                "out of memory, most likely: try fewer workers"
            )
        self._workers.append(_Worker(self._start))


def run(server_app: ServerApp, grid: Grid, run_config: Mapping[str, UserConfigValue] | None = None) -> None:
    """Run a ServerApp on the grid, as Flower's engines do."""
    context = Context(run_id=RUN_ID, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config or {}))
    server_app(grid, context)


# ---- worker processes ----------------------------------------------------------------------------------------------


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, start: worker_process.Start) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self.pipe, child = context.Pipe()
        self.under_way: list[str] = []
        self.process: BaseProcess = context.Process(target=worker_process.work, args=(child, start), daemon=True)
        with _worker_environment(), _main_left_alone(), deaf_to_ctrl_c():
            self.process.start()
        child.close()

    def send(self, task: Task) -> None:
        self.under_way.append(task.message_id)
        with contextlib.suppress(BrokenPipeError):  # `_receive` sees the end of the pipe and answers for the worker
            self.pipe.send(task)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Let child processes start with one thread in numpy's and torch's libraries, and large pages in glibc's malloc.

    A training step takes memory anew for what it computes; in pages of 4 kB that is thousands of page faults a step.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", TUNABLES)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1") | {TUNABLES: before[TUNABLES] or "glibc.malloc.hugetlb=1"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """Let child processes start without importing the script that runs: a worker needs nothing of it.

    `multiprocessing` would import it in each, and one that simulates without `if __name__ == "__main__"` would begin
    again there, and fail.
    """
    main = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.update(before)


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let child processes start with SIGINT blocked: a terminal sends it to all, and it is the parent's business."""
    resource_tracker.ensure_running()  # its own start unblocks SIGINT, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def locked(states: Path) -> connection.Connection:
    """Make the folder of the clients' states and lock it, against other engines and what is left of killed ones.

    The lock belongs to the file's description, which the workers get too: as a connection, since that is what
    `multiprocessing` hands on to a process. It is free once this process and all its workers have ended.
    """
    states.mkdir(parents=True, exist_ok=True)
    lock = connection.Connection(os.open(states / "lock", os.O_RDWR | os.O_CREAT, 0o644))
    patience = perf_counter() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if perf_counter() > patience:
                lock.close()
                raise EngineError(f"another run is at work in {states}; wait for its end, or stop it") from None
            sleep(0.05)
        else:
            files.remove_leftovers(states)
            for folder in states.glob(f"{RECORDS}*"):
                shutil.rmtree(folder)
            return lock
