"""The parent's end of the inline engine's worker processes, and what they start with."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess

from fedpress.simulations.engines import worker_process
from fedpress.simulations.engines.worker_process import Task

IMPORTED_ONCE = ["flwr.clientapp", "torch", "fedpress.client.app", "fedpress.simulations.runs.job"]
"""What nearly every ClientApp needs. Imported by one process that all workers are forked from, so that a worker starts
in milliseconds and not in seconds."""
TUNABLES = "GLIBC_TUNABLES"
"""The environment variable that glibc reads at the start of a process; other systems do not."""


class Worker:
    """The parent's end of a worker process.

    Args:
        start: what the process is told at its start.

    Attributes:
        pipe: to the process.
        under_way: ids of the messages that it holds.
        process: the process itself.
    """

    def __init__(self, start: worker_process.Start) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self.pipe, child = context.Pipe()
        self.under_way: list[str] = []
        self.process: BaseProcess = context.Process(target=worker_process.work, args=(child, start), daemon=True)
        with worker_environment(), deaf_to_ctrl_c():
            self.process.start()
        child.close()

    def send(self, task: Task) -> None:
        """Hand it a task."""
        self.under_way.append(task.message_id)
        with contextlib.suppress(BrokenPipeError):  # `_receive` sees the end of the pipe and answers for the worker
            self.pipe.send(task)

    def stop(self) -> None:
        """End it, by force where it does not end by itself."""
        self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
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
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let child processes start with SIGINT blocked: a terminal sends it to all, and it is the parent's business."""
    resource_tracker.ensure_running()  # its own start unblocks SIGINT, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
