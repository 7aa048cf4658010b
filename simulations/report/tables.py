"""Figures as text: lines of name and value, and tables, neither cut to the width of a terminal.

rich's tables fold or cut cells where a terminal is narrow or the output is a pipe, which spoils numbers for `grep` and
`awk`; hence `table_lines`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.filesize import decimal as size

from fedpress.simulations.report import plain, units
from fedpress.simulations.results.records import Results, StudentResult, TierResult, Totals

FLOWERTUNE_BUDGET = 200_000
"""Communication budget of the FlowerTune LLM Leaderboard: arrays in both directions, in MB of 2^20 bytes."""


def fact_lines(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line for each pair of name and value, the values aligned.

    >>> fact_lines([("status", "finished"), ("up", "3 kB")])
    ['status  finished', 'up      3 kB']
    """
    facts = [(plain.printable(name), plain.printable(value)) for name, value in facts]
    width = max((len(name) for name, _ in facts), default=0)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its head first; all columns but the first are aligned right.

    Args:
        columns: Heads of the columns.
        rows: Cells of each row, as many as columns.

    >>> table_lines(("tier", "bytes"), [("phone", "900")])
    ['tier   bytes', 'phone    900']
    """
    lines = [tuple(map(plain.printable, line)) for line in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        f"{first:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        for first, *rest in lines
    ]


def run_lines(results: Results) -> list[str]:
    """Return a run's figures and, below an empty line, the table of its students if it made any."""
    columns, rows = student_table(results)
    return [*fact_lines(run_facts(results)), *(["", *table_lines(columns, rows)] if rows else [])]


def run_facts(results: Results) -> list[tuple[str, str]]:
    """Return name and value of a run's figures."""
    totals, planned = results.totals, results.scenario.get("rounds")
    refused = sum(one.refused for one in results.rounds)
    last = "last 10 rounds" if len(results.rounds) >= 10 else "rounds so far"
    mean, most = results.staleness
    stale = [
        ("staleness", f"{mean:.2f} steps on average, {most} at most, over {results.flushes} flushes of the buffer")
    ]
    return [
        ("scenario", f"{results.name}, seed {results.seed}"),
        ("status", results.status + (f": {results.reason}" if results.reason else "")),
        ("rounds", f"{len(results.rounds)} of {planned}" + (f", {refused} replies refused" if refused else "")),
        *(stale if results.flushes else []),
        *([_mask(results)] if results.new_masks else []),
        ("accuracy", "not evaluated" if results.accuracy is None else f"{results.accuracy:.2%}, mean of the {last}"),
        ("bytes up", _against(totals.up_bytes, totals.up_ratio)),
        ("bytes down", _against(totals.down_bytes, totals.down_ratio)),
        *_arrays(results.totals),
        *_network(results),
        ("model", f"{results.model.parameters:,} parameters, sha256 {results.model.sha256[:16] or 'not yet'}"),
        *((f"tier {tier.tier}", _tier_fact(tier)) for tier in results.tiers),
        ("seconds", "; of the rounds: ".join([f"{results.seconds:.0f}", *_shares(results.phases)])),
        *(("workers", text) for text in _shares(results.worker_phases)),
    ]


def _shares(phases: Mapping[str, float]) -> list[str]:
    """Return a text with the shares of the larger phases, in a list; empty where none was measured."""
    whole = sum(phases.values())
    longest_first = sorted(phases.items(), key=lambda phase: -phase[1])
    named = [f"{name} {seconds / whole:.0%}" for name, seconds in longest_first if seconds >= 0.02 * whole > 0]
    return [", ".join(named)] if named else []


def _arrays(totals: Totals) -> list[tuple[str, str]]:
    """Return FlowerTune's budget line; nothing for a run that was recorded without it."""
    if not totals.array_bytes:
        return []
    dense = f", dense {flowertune(totals.dense_array_bytes)}" if totals.dense_array_bytes else ""
    used = flowertune(totals.array_bytes)
    return [("arrays", f"{used} both ways{dense}; the budget of FlowerTune's leaderboard is {FLOWERTUNE_BUDGET:,} MB")]


def flowertune(size: int) -> str:
    """Return bytes as FlowerTune writes them: its MB are 2^20 bytes."""
    return f"{size / 2**20:,.2f} MB"


def _network(results: Results) -> list[tuple[str, str]]:
    """Return virtual time and energy; nothing for a run without a network."""
    if not results.scenario.get("network"):
        return []
    seconds, joules = results.rounds[-1].virtual_seconds if results.rounds else 0.0, results.totals.joules
    return [
        ("virtual time", f"{seconds:,.1f} s"),
        *(
            [("energy", f"{units.format_joules(joules)}, what clients spent on these bytes (estimate)")]
            if joules
            else []
        ),
    ]


def _mask(results: Results) -> tuple[str, str]:
    last, count = results.rounds[-1], len(results.new_masks)
    return "mask", f"{last.density:.1%} of the weights, {count} mask{'s' if count > 1 else ''} over the rounds"


def _tier_fact(tier: TierResult) -> str:
    accuracy = "not evaluated" if tier.accuracy is None else f"accuracy {tier.accuracy:.2%}"
    return f"{accuracy}, {tier.parameters:,} parameters, {size(tier.up_bytes)} up, {size(tier.down_bytes)} down"


def _against(sent: int, ratio: float | None) -> str:
    if ratio is None:
        return size(sent)
    return f"{size(sent)}, as dense" if 0.95 < ratio < 1.05 else f"{size(sent)}, {ratio:,.1f}x less than dense"


def claimed_accuracy(student: StudentResult) -> str:
    """Return the accuracies that clients report of a student, which are their claims; "-": none has reported any."""
    if not (claims := student.claimed_accuracies):
        return "-"
    return " to ".join(dict.fromkeys(f"{claim:.2%}" for claim in (min(claims), max(claims))))


def student_table(results: Results) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return columns and rows of the students of the last version; accuracies are on test data.

    The last column, of the ONNX graphs, is there where a student has one.
    """
    last = max((student.version for student in results.students), default=0)
    students = [student for student in results.students if student.version == last]
    columns: tuple[str, ...] = ("student", "parameters", "bundle", "teacher", "student", "quantized", "clients say")
    rows: list[tuple[str, ...]] = [
        (
            student.tier,
            f"{student.parameters:,}",
            size(student.bundle_bytes),
            f"{student.teacher_accuracy:.2%}",
            f"{student.student_accuracy:.2%}",
            f"{student.quantized_accuracy:.2%}",
            claimed_accuracy(student),
        )
        for student in students
    ]
    if any(student.onnx_accuracy is not None for student in students):
        columns += ("as ONNX",)
        graphs = ("-" if one.onnx_accuracy is None else f"{one.onnx_accuracy:.2%}" for one in students)
        rows = [(*row, graph) for row, graph in zip(rows, graphs, strict=True)]
    return columns, rows
