"""Progress of a run: lines and a bar on a terminal, a bar in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal as size
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedpress.simulations.report import plain
from fedpress.simulations.results.records import RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from fedpress.compression.models.step import SearchProgress


class Display(Observer):
    """Observer that prints a line for each round with accuracy and bytes, and on a terminal a bar below them.

    A notebook shows the bar alone, since the run's result shows the rest. The bar is one output that is replaced, as
    rich's own would be only with ipywidgets.

    Use as a context manager around the run; on a terminal it restores the cursor however the run ends.

    Args:
        console: Where to print.
        rounds: Number that the bar counts up to.

    Attributes:
        folder: The run folder; None until the run has started.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        self._rounds = rounds
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),  # a tier may be called [/b]
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=rounds)
        self._output: Any = None  # a notebook's handle of the bar's output
        self._up = self._down = 0
        self.folder: RunFolder | None = None

    def __enter__(self) -> Display:
        if self._bar.console.is_jupyter:
            from IPython.display import display

            self._output = display(self._bar, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_notes(self, notes: Sequence[str]) -> None:
        """Print what is unusual about data, model or rounds."""
        for note in notes:
            self._print(f"note: {note}")

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """Print the scenario, the run folder and the head of the rounds' table; of a run that failed, why it did."""
        self.folder = folder
        if folder.results.is_file() and (before := folder.load_results()).status == "failed":
            self._print(f"this run failed after round {len(before.rounds)}, and is tried again: {before.reason}")
        self._print(
            f"{scenario.name}: task {scenario.task.name}, {scenario.clients} clients,"
            f" {scenario.sampling.clients_per_round} a round, density {scenario.density:.3g}, seed {scenario.seed};"
            f" files in {folder.path}"
        )
        self._print(f"{'round':>9}  {'accuracy':>8}  {'loss':>7}  {'bytes up':>9}  {'bytes down':>10}")

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """Print where the run continues; the bar and its sums include the earlier rounds."""
        self._up, self._down = sum(done.up_bytes for done in rounds), sum(done.down_bytes for done in rounds)
        self._print(f"goes on after round {rounds[-1].round} of {self._rounds}")
        self._show("resuming", rounds[-1].round)

    def on_round(self, result: RoundResult) -> None:
        """Print the round's line, with the bytes of this round; the bar has those of the run."""
        self._up += result.up_bytes
        self._down += result.down_bytes
        accuracy = "-" if result.accuracy is None else f"{result.accuracy:.2%}"
        loss = "-" if result.loss is None else f"{result.loss:.4f}"
        line = (
            f"{result.round:>4}/{self._rounds:<4}  {accuracy:>8}  {loss:>7}  {size(result.up_bytes):>9}"
            f"  {size(result.down_bytes):>10}"
        )
        for name, tier in result.tiers.items():
            line += "" if tier.accuracy is None else f"  {name} {tier.accuracy:.2%}"
        if result.refused:
            reasons = ", ".join(f"{count} {reason}" for reason, count in result.reasons.items())
            line += f"  {result.refused} refused: {reasons}"
        self._print(line)
        last = f"accuracy {accuracy}, " if result.accuracy is not None else ""
        self._show(f"{last}{size(self._up)} up, {size(self._down)} down", result.round)

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """Print that a search begins; on a terminal, show its progress."""
        if not step.done:
            self._print(f"student {tier}: searching for the best architecture within its budget")
        self._show(f"student {tier}, {step.done / step.total:.0%}: {step.text}")

    def on_student(self, result: StudentResult) -> None:
        """Print a downloaded student's size and accuracy."""
        graph = "" if result.onnx_accuracy is None else f", as ONNX {result.onnx_accuracy:.2%}"
        self._print(
            f"student {result.tier}: {result.parameters:,} parameters, {size(result.bundle_bytes)},"
            f" opened and checked: accuracy {result.accuracy:.2%}{graph} (teacher {result.teacher_accuracy:.2%})"
        )

    def _show(self, description: str, completed: int | None = None) -> None:
        """Bring the bar up to date."""
        self._bar.update(self._task, completed=completed, description=description)
        if self._output is not None:
            self._output.update(self._bar)

    def _print(self, line: str) -> None:
        if self._output is None:
            self._bar.console.print(plain.printable(line), highlight=False, markup=False, soft_wrap=True)
