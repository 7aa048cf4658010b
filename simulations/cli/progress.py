"""What `fedpress simulate` shows while it runs, and the tables at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal as size
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedpress.simulations.cli import inspection
from fedpress.simulations.results.records import Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from fedpress.compression.models.step import SearchProgress


class Display(Observer):
    """Follows a run: a line for each round with accuracy and bytes, and on a terminal a bar below them.

    Use as a context manager around the run; on a terminal it restores the cursor however the run ends.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._rounds = rounds
        self._bar = Progress(
            TextColumn("{task.description}"),
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
        self._up = self._down = 0
        self.folder: RunFolder | None = None  # known once the run has begun

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """Say what runs and where its files go."""
        self.folder = folder
        self._print(
            f"{scenario.name}: task {scenario.task.name}, {scenario.clients} clients,"
            f" {scenario.sampling.clients_per_round} a round, density {scenario.density:.3g}, seed {scenario.seed};"
            f" files in {folder.path}"
        )
        self._print(f"{'round':>9}  {'accuracy':>8}  {'loss':>7}  {'bytes up':>9}  {'bytes down':>10}")

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """Say where the run goes on; the bar and its sums take in the rounds before."""
        self._up, self._down = sum(done.up_bytes for done in rounds), sum(done.down_bytes for done in rounds)
        self._print(f"goes on after round {rounds[-1].round} of {self._rounds}")
        self._bar.update(self._task, completed=rounds[-1].round, description="resuming")

    def on_round(self, result: RoundResult) -> None:
        """Add the round's line; bytes are those of the round."""
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
        self._bar.update(
            self._task, completed=result.round, description=f"{last}{size(self._up)} up, {size(self._down)} down"
        )

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """Say that a search begins; on a terminal, how far it has come."""
        if not step.done:
            self._print(f"student {tier}: the best within its budget is looked for")
        part = f"{step.done / step.total:.0%}"
        self._bar.update(self._task, description=f"student {tier}, {part}: {step.text}")

    def on_student(self, result: StudentResult) -> None:
        """Say that a student was downloaded and what it is worth."""
        self._print(
            f"student {result.tier}: {result.parameters:,} parameters, {size(result.bundle_bytes)},"
            f" opened and checked: accuracy {result.accuracy:.2%} (teacher {result.teacher_accuracy:.2%})"
        )

    def _print(self, line: str) -> None:
        _print_line(self._bar.console, line)


def print_run(console: Console, results: Results) -> None:
    """The tables of a run: its figures, and its students."""
    print_facts(console, inspection.run_facts(results))
    rows = inspection.student_rows(results)
    if rows:
        console.print()
        print_rows(console, inspection.STUDENT_COLUMNS, rows)


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """One line for each name and value."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        _print_line(console, f"{name:<{width}}  {value}")


def print_rows(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, never cut to the width of the screen; all but the first column are numbers, set to the right."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        numbers = (f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        _print_line(console, f"{first:<{widths[0]}}{''.join(numbers)}")


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
