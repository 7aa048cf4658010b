"""Parent's end of the inline engine's worker processes, and the environment that they start in."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from fedpress.simulations.engines import worker_process
from fedpress.simulations.engines.worker_process import WorkerTask

IMPORTED_ONCE = ["flwr.clientapp", "torch", "fedpress.client.app", "fedpress.simulations.runs.job"]
"""Modules that nearly every ClientApp imports: preloaded by the process that workers are forked from, so that a worker
starts in milliseconds and not in seconds."""
TUNABLES = "GLIBC_TUNABLES"
"""Environment variable that glibc reads at the start of a process; other C libraries ignore it."""


class Worker:
    """Parent's end of a worker process.

    Args:
        start: Configuration of the process.

    Attributes:
        pipe: Connection to the process.
        under_way: Ids of the messages that the worker holds.
        process: The process.
    """

    def __init__(self, start: worker_process.WorkerStart) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self.pipe, child = context.Pipe()
        self.under_way: list[str] = []
        self.process: BaseProcess = context.Process(target=worker_process.work, args=(child, start), daemon=True)
        with worker_environment(), deaf_to_ctrl_c(), main_left_alone():
            self.process.start()
        child.close()

    def send(self, task: WorkerTask) -> None:
        """Send a task to the worker; one that is dead is left for the reader of the pipe to notice."""
        self.under_way.append(task.message_id)
        with contextlib.suppress(BrokenPipeError):  # the reader sees the end of the pipe
            self.pipe.send(task)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """Let child processes start with one thread in numpy's and torch's libraries, and large pages in glibc's malloc.

    A training step allocates its tensors anew; in pages of 4 kB that is thousands of page faults a step.
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
def main_left_alone() -> Iterator[None]:
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
    """Let child processes start with SIGINT blocked: a terminal sends it to all, and the parent alone handles it."""
    resource_tracker.ensure_running()  # its own start unblocks SIGINT, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
