"""Output of `fedpress pull`: a bar on a terminal, a line for each failed attempt, and a summary."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal as size
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fedpress.simulations.report import plain

if TYPE_CHECKING:
    from fedpress.client.download.pull import Pulled


class PullDisplay:
    """Display of one pull; use it as a context manager.

    Args:
        console: Standard error, so that standard output has the result alone.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("asking", total=None)

    def __enter__(self) -> PullDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_progress(self, done: int, total: int) -> None:
        """Show how much of the file has arrived.

        Args:
            done: Bytes on this device.
            total: Bytes of the file.
        """
        self._bar.update(self._task, completed=done, total=total, description="downloading")

    def on_wait(self, reason: str, seconds: float) -> None:
        """Print that an attempt failed.

        Args:
            reason: What went wrong.
            seconds: Wait before the next attempt.
        """
        line = plain.printable(f"{reason}; again in {seconds:.1f} s")
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(pulled: Pulled) -> str:
    """Return the last line: the version, and what was downloaded for it."""
    if not pulled.changed:
        return f"{pulled.path}: version {pulled.version} is the newest, and it is here already"
    part = "" if pulled.received == pulled.size else f" of {size(pulled.size)}, the rest was here"
    return f"{pulled.path}: version {pulled.version}, verified; {size(pulled.received)} downloaded{part}"
