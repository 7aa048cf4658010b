"""`fedpress bench recipes`: every recipe on one scenario and the same seeds, each with a server tuned for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from fedpress.compression.errors import FedpressError
from fedpress.simulations import paired, scenario_errors
from fedpress.simulations import scenario as scenarios
from fedpress.simulations.scenario import Scenario


class RecipesError(FedpressError, ValueError):
    """The rows or seeds asked for cannot be run."""


class Row(NamedTuple):
    """One line of the table: overrides of the scenario; None leaves the scenario's own."""

    name: str
    encoder: str | None = None
    server: str | None = None

    @property
    def overrides(self) -> list[str]:
        """Return them as `scenario.load` takes them."""
        pairs = {"encoder": self.encoder, "server": self.server}
        return [f"{key}={value}" for key, value in pairs.items() if value is not None]


def _sgd(learning_rate: float, momentum: float = 0.0) -> str:
    return f"{{optimizer: sgd, learning_rate: {learning_rate}, momentum: {momentum}}}"


# The servers are the best of those tried on `digits` with evaluation.split=validation and seed 101; docs/recipes.md
# says which were tried.
ROWS = (
    Row("dense float32", "{kind: dense, values: float32, feedback: none}", _sgd(1.0, 0.5)),
    Row("the scenario itself"),
    Row("stc", "stc", _sgd(1.0, 0.5)),
    Row("fedpress", "fedpress", _sgd(1.5, 0.7)),
    Row("fedpress, ternary values", "{values: ternary, feedback: step_ahead}", _sgd(1.5, 0.7)),
    Row("stc, step values", "{values: step, feedback: residual}", _sgd(1.0, 0.5)),
    Row("dgc", "dgc", _sgd(0.2)),
    Row("random_k", "random_k", _sgd(1.0, 0.5)),
    Row("qsgd(4)", "{recipe: qsgd, bits: 4}", _sgd(1.0, 0.5)),
    Row("terngrad", "terngrad", _sgd(1.0, 0.5)),
    Row("eden(4)", "{recipe: eden, bits: 4}", _sgd(1.0, 0.5)),
    Row("eden(1)", "{recipe: eden, bits: 1}", _sgd(1.0, 0.5)),
    Row("signsgd", "signsgd", "{optimizer: majority_vote, learning_rate: 0.001}"),
    Row("powersgd(2)", "{recipe: powersgd, rank: 2}", _sgd(1.5, 0.7)),
    Row("fp16", "fp16", _sgd(1.0, 0.5)),
    Row("int8", "int8", _sgd(1.0, 0.5)),
)
"""The recipes, and what they are held against."""


class Outcome(NamedTuple):
    """A row's figures over all seeds.

    Attributes:
        name: of the row.
        server: what the server did, in words.
        accuracies: one for each seed, as fractions: the mean of the last ten rounds' held models.
        up_bytes: bytes up of a run, mean.
        dense_up_bytes: the same if every message were the whole float32 update as plain Flower sends it.
    """

    name: str
    server: str
    accuracies: list[float]
    up_bytes: float
    dense_up_bytes: float

    @property
    def accuracy(self) -> float:
        """Return the mean accuracy."""
        return mean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Return the sample's standard deviation; None for one seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def up_ratio(self) -> float:
        """Return how many times fewer bytes went up than dense."""
        return self.dense_up_bytes / self.up_bytes


def chosen(names: Sequence[str] = ()) -> list[Row]:
    """Return the rows of these names, in the order of the table; all if none is given.

    Raises:
        RecipesError: there is no such row.
    """
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise RecipesError(f"there is no row {name!r}; expected {scenario_errors.choices(known, name)}")
    return [row for row in ROWS if not names or row.name in names]


def load(path_or_name: str | Path, row: Row, overrides: Sequence[str] = ()) -> Scenario:
    """Return the scenario of a row; the overrides come last, so that they may change the row's own settings."""
    return scenarios.load(path_or_name, [*row.overrides, *overrides])


def run(
    rows: Sequence[tuple[str, Scenario]],
    seeds: Sequence[int],
    on_seed: Callable[[str, int], None] | None = None,
    on_row: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run every row with every seed; students are left out.

    Args:
        rows: name and scenario; all scenarios have one name, so that seeds draw the same in all.
        seeds: given to each row.
        on_seed: told before a run.
        on_row: told of a row's figures when its last seed is done.

    Raises:
        RecipesError: no seeds.
    """
    if not seeds:
        raise RecipesError("expected at least one seed, and got none")
    outcomes = []
    for name, scenario in rows:
        runs = []
        for seed in seeds:
            if on_seed:
                on_seed(name, seed)
            runs.append(paired.results(scenario, seed))
        outcome = Outcome(
            name,
            _server(scenario),
            [float(run.accuracy or 0) for run in runs],
            mean(run.totals.up_bytes for run in runs),
            mean(run.totals.dense_up_bytes for run in runs),
        )
        outcomes.append(outcome)
        if on_row:
            on_row(outcome)
    return outcomes


def _server(scenario: Scenario) -> str:
    server = scenario.server
    words = f"{server.optimizer} {server.learning_rate:g}"
    return f"{words}, momentum {server.momentum:g}" if server.momentum else words


COLUMNS = ("recipe", "server", "accuracy", "+-", "MB up", "fewer bytes")
_WIDTHS = (max(len(row.name) for row in ROWS), 22, 8, 5, 8, 11)


def line(cells: Sequence[str] = COLUMNS) -> str:
    """Return a line of the table, which grows row by row; by default its head."""
    first, second, *numbers = cells
    left = f"{first:<{_WIDTHS[0]}}  {second:<{_WIDTHS[1]}}"
    return left + "".join(f"  {cell:>{width}}" for cell, width in zip(numbers, _WIDTHS[2:], strict=True))


def cells(outcome: Outcome) -> list[str]:
    """Return a row's figures for people; the spread in points."""
    spread = "-" if outcome.spread is None else f"{100 * outcome.spread:.2f}"
    ratio, size = f"{outcome.up_ratio:,.1f}x", f"{outcome.up_bytes / 1e6:,.2f}"
    return [outcome.name, outcome.server, f"{outcome.accuracy:.2%}", spread, size, ratio]
