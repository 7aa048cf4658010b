"""Result of a run for Python, notebooks and terminals: figures as pandas frames, curves, the model."""

from __future__ import annotations

from functools import cached_property
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from fedpress.simulations.report import drawings, run_page, tables
from fedpress.simulations.results.records import LayerDensity, Results, RoundResult, StudentResult
from fedpress.simulations.results.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pandas import DataFrame
    from pydantic import BaseModel
    from torch import Tensor

    from fedpress.simulations.report.drawings import Drawing

CURVES = ("accuracy-over-rounds", "accuracy-over-bytes")
"""Names of the figures that a notebook shows; the report has more."""

_outputs = count(1)


class RunResult:
    """The result of a run, read from its folder.

    A notebook shows it as a table of figures, the students, and the curves of accuracy over rounds and bytes; `print`
    shows the same as text.

    Attributes:
        folder: The run folder.
        results: All figures, as in results.json.
    """

    def __init__(self, path: Path | str) -> None:
        """Read the run at `path`.

        Raises:
            RunFolderError: There is no such folder, or it is not a run's, or its results.json is damaged.
        """
        self._run = RunFolder.open(path)
        self.folder: Path = self._run.path
        self.results: Results = self._run.load_results()

    @property
    def accuracy(self) -> float | None:
        """The model's accuracy, a fraction: the mean of the last 10 evaluated rounds. None: none was evaluated."""
        return self.results.accuracy

    @cached_property
    def rounds(self) -> DataFrame:
        """A row for each round, indexed by its number; the columns are those of `RoundResult`."""
        return _frame(RoundResult, self.results.rounds, exclude={"reasons", "tiers"}).set_index("round")

    @cached_property
    def tiers(self) -> DataFrame:
        """A row for each round and tier that trains a model of its own; the columns are those of `TierRound`."""
        from pandas import DataFrame

        rows = [
            {"round": result.round, "tier": name, **tier.model_dump()}
            for result in self.results.rounds
            for name, tier in result.tiers.items()
        ]
        return DataFrame(rows, columns=["round", "tier", "accuracy", "loss", "up_bytes", "down_bytes", "replies"])

    @cached_property
    def students(self) -> DataFrame:
        """A row for each student of each published version; the columns are those of `StudentResult`."""
        return _frame(StudentResult, self.results.students, exclude={"stages", "candidates", "curve", "timings"})

    @cached_property
    def layers(self) -> DataFrame:
        """A row for each tensor, indexed by its name: its entries, and how many of them a mean update holds."""
        return _frame(LayerDensity, self.results.layers).set_index("name")

    @cached_property
    def ledger(self) -> DataFrame:
        """Every byte that was sent: round, node, direction, kind, bytes."""
        from pandas import DataFrame

        from fedpress.compression.ledger import Entry

        ledger = self._run.load_ledger()
        return DataFrame(ledger.rows if ledger else [], columns=list(Entry._fields))

    @cached_property
    def model(self) -> dict[str, Tensor]:
        """The state of the global model at the end: `module.load_state_dict(result.model)`.

        Raises:
            FileNotFoundError: The run has not come to its end.
        """
        from safetensors.torch import load_file

        return load_file(self._run.model)

    def drawings(self) -> list[Drawing]:
        """Return the figures of the report; each has the methods `svg()` and `png()`."""
        return run_page.drawings(self.results, self._run.load_ledger())

    def report(self, out: Path | None = None) -> Path:
        """Write the report, one HTML file, and return its path; the default is report.html in the run folder."""
        return run_page.write(self.folder, out)

    def __repr__(self) -> str:
        """Return the figures and the students as text."""
        return "\n".join([*tables.run_lines(self.results), *tables.fact_lines([("folder", str(self.folder))])])

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        facts = [*tables.run_facts(self.results), ("folder", str(self.folder))]
        columns, students = tables.student_table(self.results)
        number = next(_outputs)  # ids must be unique in the notebook, which may show a run twice
        curves = [
            drawing._replace(name=f"fedpress-{number}-{drawing.name}").on_page()
            for drawing in run_page.drawings(self.results, None)
            if drawing.name in CURVES
        ]
        return "".join(
            [
                f"<style>{_STYLE}</style><div class='fedpress-run'>",
                _table((), facts),
                _table(columns, students) if students else "",
                *curves,
                "</div>",
            ]
        )


_STYLE = (
    f".fedpress-run {{ {drawings.css_variables(drawings.LIGHT)} color: var(--ink) }} "
    f"[data-jp-theme-light='false'] .fedpress-run, .vscode-dark .fedpress-run {{ "
    f"{drawings.css_variables(drawings.DARK)} }} .fedpress-run svg {{ max-width: 100%; height: auto; display: block }}"
)
"""Style with the colors of light and dark notebooks, by the marks of JupyterLab and VS Code."""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; without columns, the first cell of each row is its head."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    first, last = ("<td>", "</td>") if columns else ("<th style='text-align: left'>", "</th>")
    cell = "<td>" if columns else "<td style='text-align: left'>"
    body = "".join(
        f"<tr>{first}{escape(name)}{last}{''.join(f'{cell}{escape(value)}</td>' for value in values)}</tr>"
        for name, *values in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>"


def _frame(kind: type[BaseModel], records: Sequence[BaseModel], exclude: set[str] | None = None) -> DataFrame:
    """Return a frame with a row for each record, and the columns of its class even where there is none."""
    from pandas import DataFrame

    columns = [name for name in kind.model_fields if name not in (exclude or ())]
    return DataFrame([record.model_dump(exclude=exclude) for record in records], columns=columns)
