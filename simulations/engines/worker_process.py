"""Worker process of the inline engine: it loads a ClientApp once, and then answers one message after the other."""

import contextlib
import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from logging import DEBUG, ERROR, FileHandler, Formatter, Logger, LogRecord, getLogger
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict, UserConfig

from fedpress.compression import entry_points, free_memory
from fedpress.compression.messages import records
from fedpress.compression.timing import Timer
from fedpress.simulations.conditions.faults import CRASHES, DIVERGES, FORGETS
from fedpress.simulations.engines import _flower, client_states

RUN_ID = 1
LONG_TASK = 10.0
"""Seconds from which a task is long beside the time that it takes to give back memory: its model is large."""
KEPT_RECORDS = 2
"""Shared records that a worker keeps in memory: the model of a round, and that of the evaluation after it."""


class WorkerTask(NamedTuple):
    """Message for a worker."""

    message_id: str
    client: int
    message: bytes  # serialized, without the shared records
    keys: tuple[str, ...]  # of all records, in their order
    shared: tuple[tuple[str, str], ...]  # key of a record, name of its file
    faults: frozenset[str] = frozenset()  # kinds that the client has


class Done(NamedTuple):
    """Reply of a worker."""

    message_id: str
    reply: bytes
    seconds: float
    seconds_by_phase: dict[str, float]  # since the worker's last reply, see `InlineGrid.seconds`


class WorkerStart(NamedTuple):
    """Configuration of a worker."""

    client_app: str
    clients: int
    run_config: UserConfig
    folder: Path  # of shared records
    states: Path
    lock: connection.Connection | None  # of the states; workers hold it too, so that no other engine writes there
    log_file: Path | None
    search_path: tuple[str, ...]
    environ: dict[str, str]  # the parent's; the process that workers are forked from has an older one


def work(pipe: connection.Connection, start: WorkerStart) -> None:
    """Answer messages until the parent closes the pipe, or is killed.

    Args:
        pipe: Connection to the parent: a `Task` in, a `Done` out; the traceback as text if the app does not load.
        start: Configuration.
    """
    Thread(target=_end_with_parent, daemon=True).start()
    sys.path[:] = start.search_path
    os.environ.update(start.environ)
    try:
        app = entry_points.load(start.client_app)
    except Exception:
        pipe.send(traceback.format_exc())
        return
    cache: OrderedDict[str, ArrayRecord] = OrderedDict()
    timer: Timer = getattr(app, "timer", None) or Timer()
    with log_to_file(start.log_file) as logger, contextlib.suppress(EOFError, ConnectionError):
        while True:
            with timer.of("waiting"):
                task: WorkerTask = pipe.recv()
            began = perf_counter()
            with timer.of("messages"):
                message = records.message_from_bytes(task.message)
                sent = message.content
                shared = {key: _shared_record(start.folder / name, cache) for key, name in task.shared}
                message.content = RecordDict({key: shared[key] if key in shared else sent[key] for key in task.keys})
            _flower.identify(RUN_ID, task.client + 1, 0)
            if FORGETS in task.faults:
                client_states.path_of(start.states, task.client).unlink(missing_ok=True)
            with timer.of("states"):
                context = _context(start, task)
            try:
                with timer.of("client"):
                    reply = app(message, context)
                if CRASHES in task.faults:
                    raise ConnectionResetError("the client died on purpose")
                with timer.of("states"):
                    # States that outlive the engine are on the disk before the reply leaves.
                    client_states.write(start.states, task.client, context.state, durable=start.lock is not None)
            except Exception as error:
                logger.log(ERROR, "client %d failed:\n%s", task.client, traceback.format_exc())
                reason = f"{type(error).__name__}: {error}"
                reply = Message(Error(_flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
            with timer.of("messages"):
                data = records.message_to_bytes(reply)
            logger.log(DEBUG, "client %d answered in %.3f s", task.client, perf_counter() - began)
            seconds = perf_counter() - began
            pipe.send(Done(task.message_id, data, seconds, timer.taken()))
            if seconds > LONG_TASK:
                del message, sent, shared, context, reply, data
                free_memory.give_back()  # the server's step comes next, or another client, who takes as long


def _shared_record(path: Path, cache: OrderedDict[str, ArrayRecord]) -> ArrayRecord | ConfigRecord:
    if path.name not in cache:
        with path.open("rb") as file:
            record = records.content_from(file)["record"]
        if isinstance(record, ConfigRecord):  # a piece, which is read once
            return record
        assert isinstance(record, ArrayRecord)
        cache[path.name] = record
        while len(cache) > KEPT_RECORDS:
            cache.popitem(last=False)
    return ArrayRecord(dict(cache[path.name]))  # a copy: apps and mods may change it


def _end_with_parent() -> None:
    """End this process as soon as the parent has ended, also in the middle of training."""
    parent = parent_process()
    if parent:
        connection.wait([parent.sentinel])
        os._exit(1)


class _RunLog(FileHandler):
    """Log file that a full disk leaves short: it neither ends the run nor fills the terminal with tracebacks."""

    def handleError(self, record: LogRecord) -> None:
        """Drop a line that cannot be written."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, with whatever could be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_to_file(path: Path | None) -> Iterator[Logger]:
    """Send Flower's log to the end of a file instead of the terminal; with None, leave it where it goes."""
    logger = getLogger("flwr")
    if path is None:
        yield logger
        return
    before = list(logger.handlers)
    handler = _RunLog(path)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    try:
        yield logger
    finally:
        logger.handlers[:] = before
        handler.close()


def _context(start: WorkerStart, task: WorkerTask) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=task.client + 1,
        node_config={
            "partition-id": task.client,
            "num-partitions": start.clients,
            **({DIVERGES: True} if DIVERGES in task.faults else {}),
        },
        state=client_states.read(start.states, task.client),
        run_config=dict(start.run_config),
    )
