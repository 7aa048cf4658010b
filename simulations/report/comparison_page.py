"""Comparison of several runs on one page: their curves, a table of figures, and the keys that differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, repeat
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from pydantic import ValidationError

from fedpress.compression.files import write_atomically
from fedpress.simulations.report import confidence, figures, questions, run_page, series
from fedpress.simulations.report import drawings as report_drawings
from fedpress.simulations.report.drawings import Drawing
from fedpress.simulations.report.figures import Curve
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.scenario.scenario import Scenario

MOST_LETTERS = 80  # of a value in the table of what differs
ABSENT: Final = object()  # a key that a scenario does not have, which is something else than null


class ComparedRun(NamedTuple):
    """A run that is compared."""

    path: Path
    results: Results

    @property
    def whole(self) -> bool:
        """Whether it finished."""
        return self.results.status == "finished"

    @property
    def mark(self) -> str:
        """Mark of a run that did not finish."""
        return "failed" if self.results.status == "failed" else "unfinished"


class RunGroup(NamedTuple):
    """Runs that are one curve: a single run, or finished runs of one scenario with different seeds.

    Attributes:
        label: Text in legends and tables.
        runs: At least one.
        settings: Values of the scenario by dotted key, without the seed.
    """

    label: str
    runs: list[ComparedRun]
    settings: Mapping[str, Any]


class Value(NamedTuple):
    """Mean over a group's runs, and half the width of Student's 95 % interval, from three runs on."""

    mean: float
    half_width: float | None = None


class Asked(NamedTuple):
    """What the page is asked for; empty: it chooses by itself (`questions`).

    Attributes:
        budgets: Bytes up and down, at which accuracies are compared.
        target: Accuracy, a fraction, to which costs are counted.
    """

    budgets: Sequence[float] = ()
    target: float | None = None


CHOSEN: Final = Asked()


class RobustLine(NamedTuple):
    """A group among others of the same method under other conditions.

    Attributes:
        label: Label of the group.
        conditions: The conditions in which it differs from the others, as text.
        accuracy: Its accuracy.
        lost: Accuracy minus that of the best among them.
    """

    label: str
    conditions: str
    accuracy: Value
    lost: float


def load(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the figures of runs.

    Raises:
        RunFolderError: A folder is given twice, is not a run's, or its results.json is damaged.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        place = path.resolve()
        if place in seen:
            other = "" if seen[place] == path else f" (as {seen[place]}, too)"
            raise RunFolderError(f"the run {path} is given twice{other}; a comparison takes each once")
        seen[place] = path
    return [ComparedRun(path, RunFolder.open(path).load_results()) for path in paths]


def write(paths: Sequence[Path], out: Path, asked: Asked = CHOSEN) -> Path:
    """Write the page of several runs and return its path.

    Args:
        paths: The run folders.
        out: Path of the page.
        asked: Budgets and target.

    Raises:
        RunFolderError: As `load`.
    """
    write_atomically(out, render(load(paths), asked).encode())
    return out


def write_figures(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the page's figures, each as SVG and PNG, and return the paths.

    Args:
        paths: The run folders.
        folder: Folder for the files, created if needed.

    Raises:
        RunFolderError: As `load`.
    """
    return report_drawings.save(drawings(grouped(load(paths))), folder)


def render(runs: Sequence[ComparedRun], asked: Asked = CHOSEN) -> str:
    """Return the page as HTML.

    Args:
        runs: The runs.
        asked: Budgets and target.
    """
    groups = grouped(runs)
    differing = differences(groups)
    every = [run.results for run in runs]
    target = questions.target(every) if asked.target is None else asked.target
    return (
        run_page.environment()
        .get_template("comparison.html")
        .render(
            names=sorted({run.results.name for run in runs}),
            groups=groups,
            runs=runs,
            tasks=sorted({str(_look_up(group.settings, "task.name")) for group in groups}),
            splits=sorted({run.results.split for run in runs}),
            unfinished=[group.label for group in groups if not group.runs[0].whole],
            several=any(len(group.runs) > 1 for group in groups),
            averaged=series.AVERAGED,
            dense=_dense(groups, "up"),
            figures={drawing.name: Markup(drawing.on_page()) for drawing in drawings(groups)},
            differing=[(key, [_text(value) for value in values]) for key, values in differing],
            students=[(group.label, *row) for group in groups for row in _students(group)],
            budgets=sorted(asked.budgets) or questions.budgets(every),
            target=target,
            costs={} if target is None else {group.label: cost_to(group, target) for group in groups},
            robust=robustness(groups),
            within=accuracy_within,
            over=over,
            span=_span,
        )
    )


def grouped(runs: Sequence[ComparedRun]) -> list[RunGroup]:
    """Return the runs in groups of one scenario with different seeds, in the order given.

    An unfinished run stays alone, since a mean over it would end where it does. The second run of a seed goes to a
    second group, and so on, so that two versions of the code on the same seeds stay apart.
    """
    members: dict[object, list[ComparedRun]] = {}
    settings: dict[object, dict[str, Any]] = {}
    again = Counter[tuple[str, int]]()
    for run in runs:
        flat = dict(_flattened(_scenario(run.results)))
        key = json.dumps(flat, sort_keys=True)
        again[key, run.results.seed] += run.whole
        place = (key, again[key, run.results.seed]) if run.whole else run.path
        members.setdefault(place, []).append(run)
        settings[place] = flat
    return _labeled([RunGroup("", members[place], settings[place]) for place in members])


def differences(groups: Sequence[RunGroup]) -> list[tuple[str, list[Any]]]:
    """Return the scenario keys that differ, each with its value in every group; ABSENT where there is no such key."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    differing = []
    for key in keys:
        values = [_look_up(group.settings, key) for group in groups]
        inner = any(other.startswith(f"{key}.") for other in keys)  # null in one, a section in another: its keys differ
        if not inner and any(value != values[0] for value in values):
            differing.append((key, values))
    return differing


def drawings(groups: Sequence[RunGroup]) -> list[Drawing]:
    """Return the figures of the page; none where no round was evaluated."""
    drawn = []
    if curves := _curves(groups, "round"):
        drawn.append(figures.accuracy_over_rounds(curves))
    if curves := _curves(groups, "both"):
        dense, xlabel = _dense(groups, "both"), "bytes up and down so far"
        drawn.append(figures.accuracy_over_bytes(curves, dense, dense_label="dense", xlabel=xlabel))
    if curves := _curves(groups, "up"):
        dense, xlabel, name = _dense(groups, "up"), "bytes up so far", "accuracy-over-bytes-up"
        drawn.append(figures.accuracy_over_bytes(curves, dense, name, dense_label="dense", xlabel=xlabel))
    return drawn


def over(group: RunGroup, figure: str) -> Value | None:
    """Return the mean of a figure over a group; None if one of its runs does not have it.

    Args:
        group: The runs.
        figure: "rounds", "accuracy", "seconds", "up_bytes", "down_bytes", "up_ratio", "down_ratio" or "both_ratio".
    """
    figures_of_runs = [_figure(run.results, figure) for run in group.runs]
    values = [value for value in figures_of_runs if value is not None]
    return _mean(values) if len(values) == len(figures_of_runs) else None


def accuracy_within(group: RunGroup, budget: float) -> Value | None:
    """Return a group's mean accuracy within a budget in bytes; None if one of its runs was not evaluated by then."""
    found = [questions.accuracy_within(run.results, budget) for run in group.runs]
    values = [value for value in found if value is not None]
    return _mean(values) if len(values) == len(found) else None


def cost_to(group: RunGroup, target: float) -> questions.Cost | None:
    """Return a group's mean cost to an accuracy; None if one of its runs did not reach it."""
    found = [questions.cost_to(run.results, target) for run in group.runs]
    costs = [cost for cost in found if cost is not None]
    if len(costs) < len(found):
        return None
    rounds, sizes, seconds = (fmean(column) for column in zip(*costs, strict=True))
    return questions.Cost(round(rounds), round(sizes), seconds)


def robustness(groups: Sequence[RunGroup]) -> list[RobustLine]:
    """Return a line for each group that differs from another one in nothing but the conditions."""
    lines = []
    for indices in questions.alike([group.settings for group in groups]):
        together = [groups[index] for index in indices]
        conditions = [(key, values) for key, values in differences(together) if questions.is_condition(key)]
        accuracies = [over(group, "accuracy") for group in together]
        best = max((value.mean for value in accuracies if value), default=0.0)
        for number, (group, value) in enumerate(zip(together, accuracies, strict=True)):
            named = ", ".join(f"{key} {_text(values[number])}" for key, values in conditions if key != "name")
            if value is not None:
                lines.append(RobustLine(group.label, named, value, value.mean - best))
    return lines


def _figure(results: Results, figure: str) -> float | None:
    totals = results.totals
    if figure == "rounds":
        return len(results.rounds)
    if figure == "both_ratio":
        dense = totals.dense_up_bytes + totals.dense_down_bytes
        return dense / totals.both_bytes if totals.both_bytes else None
    value = getattr(results if figure in ("accuracy", "seconds") else totals, figure)
    return None if value is None else float(value)


def _mean(values: Sequence[float]) -> Value:
    return Value(fmean(values), confidence.half_width(values) if len(values) > 2 else None)


def _span(group: RunGroup) -> str:
    """Return the group's seeds as text: `1-3, 7`."""
    parts: list[list[int]] = []
    for seed in sorted(run.results.seed for run in group.runs):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _curves(groups: Sequence[RunGroup], axis: series.Axis) -> list[Curve]:
    curves = []
    for group in groups:
        label = group.label if group.runs[0].whole else f"{group.label} ({group.runs[0].mark})"
        runs = [series.running(series.points(run.results)) for run in group.runs]
        curves.append(series.curve(label, runs, axis, smooth=True))
    return [curve for curve in curves if curve]


def _dense(groups: Sequence[RunGroup], axis: str) -> float | None:
    """Return the bytes of dense messages in each finished run, if they are about the same for all."""
    costs = []
    for run in (run for group in groups for run in group.runs if run.whole):
        totals = run.results.totals
        costs.append(totals.dense_up_bytes + (totals.dense_down_bytes if axis == "both" else 0))
    return fmean(costs) if costs and 0 < max(costs) < 1.05 * min(costs) else None


def _students(group: RunGroup) -> Iterator[tuple[str, Value, Value, Value, Value]]:
    """Yield tier, parameters, bytes of the bundle, accuracy and teacher's accuracy of the last version's students."""
    newest = [{student.tier: student for student in run_page.newest(run.results)} for run in group.runs]
    for tier in dict.fromkeys(tier for by_tier in newest for tier in by_tier):
        students = [by_tier[tier] for by_tier in newest if tier in by_tier]
        yield (
            tier,
            _mean([student.parameters for student in students]),
            _mean([student.bundle_bytes for student in students]),
            _mean([student.accuracy for student in students]),
            _mean([student.teacher_accuracy for student in students]),
        )


def _scenario(results: Results) -> dict[str, Any]:
    """Return a run's scenario without seed and workers; keys that are newer than the run have their defaults."""
    try:
        scenario = Scenario.model_validate(results.scenario).model_dump(mode="json")
    except ValidationError:  # of a version with other keys: they are compared as they were written
        scenario = results.scenario
    return {key: value for key, value in scenario.items() if key not in ("seed", "workers")}


def _flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _look_up(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; None where its section is null, ABSENT where there is no such key."""
    while key not in settings:
        key, _, last = key.rpartition(".")
        if not last or not key:
            return ABSENT
        if key in settings and settings[key] is not None:
            return ABSENT
    return settings[key]


def _text(value: Any) -> str:
    if value is ABSENT:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def _labeled(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups with the shortest labels that are distinct.

    A single run is labeled by its folder, with as many parent folders as needed; several runs by their scenario's name,
    or by the keys in which it differs from the others.
    """
    alone = [group for group in groups if len(group.runs) == 1]
    together = [group for group in groups if len(group.runs) > 1]
    labels = dict(
        [
            *zip(map(id, alone), _folders([group.runs[0].path for group in alone]), strict=True),
            *zip(map(id, together), _keys(together), strict=True),
        ]
    )
    used = Counter[str]()
    result = []
    for group in groups:
        label = labels[id(group)]
        used[label] += 1
        result.append(group._replace(label=label if used[label] == 1 else f"{label} ({used[label]})"))
    return result


def _folders(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1)):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _keys(groups: Sequence[RunGroup]) -> list[str]:
    """Return labels made of the fewest differing keys; among those, the shortest labels."""
    if len(groups) <= 1:
        return [group.runs[0].results.name for group in groups]
    differing = [(key, [_text(value) for value in values]) for key, values in differences(groups)]
    names = [group.runs[0].results.name for group in groups]
    if len(set(names)) == len(names):
        return names
    for count in range(1, min(3, len(differing)) + 1):
        candidates = [
            [
                ", ".join(texts)
                for texts in zip(*(map(_named, repeat(key), values) for key, values in chosen), strict=True)
            ]
            for chosen in combinations(differing, count)
        ]
        if distinct := [labels for labels in candidates if len(set(labels)) == len(groups)]:
            return min(distinct, key=lambda labels: sum(map(len, labels)))
    return [f"{group.runs[0].path.resolve().name} and {len(group.runs) - 1} more" for group in groups]


def _named(key: str, value: str) -> str:
    return value if key == "name" else f"{key} {value}"
