"""Suites: methods x scenarios x partitions x seeds in one YAML file. Each cell is an ordinary run of a scenario.

>>> suite = load("digits")
>>> cells = suite.cells(only=["fedpress"], seeds=[1])
>>> [(cell.method, cell.partition, cell.seed) for cell in cells]
[('fedpress', 'dirichlet-0.5', 1)]
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from fedpress.compression import files, suggest
from fedpress.compression.errors import FedpressError
from fedpress.simulations.conditions import network
from fedpress.simulations.scenario import diagnostics, yaml_source
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.scenario.section import Section

FOLDER = Path(__file__).parent
SUITES = FOLDER / "standing"
"""The suites that come with fedpress."""


class SuiteError(FedpressError, ValueError):
    """A suite cannot be run; the text lists every problem."""


class Method(Section):
    """A method of sending updates, as changes of a scenario (`KEY=VALUE`, as `--set` takes them)."""

    title: str = Field(default="", description="Its name in tables and figures; empty: its key.")
    source: str = Field(default="", description="Where it was published.")
    set: tuple[str, ...] = Field(default=(), strict=False, description="Changes in every scenario.")
    tuned: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        default={}, description="Changes in one scenario, by its name: what was tuned there."
    )


def _seeds(given: Any) -> Any:
    """Read 3, "1-3", "1,5" or a list."""
    if isinstance(given, int | str) and not isinstance(given, bool):
        return parse_seeds(str(given))
    return _some(given)


def _some(given: Any) -> Any:
    """Refuse an empty list; a constraint of the field would be reported for invalid items, too."""
    if given in ([], ()):
        raise ValueError("expected at least one")
    return given


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as "1-10" or "3,5,8".

    Raises:
        ValueError: The text is neither, names no seed, or one twice.
    """
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ValueError(f"got {text!r}, expected a range such as 1-10 or numbers such as 3,5,8")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"got {text!r}, expected at least one seed, and each once")
    return chosen


Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds), Field(strict=False)]


class Grid(Section):
    """A scenario with the partitions, methods and seeds that are crossed."""

    scenario: str = Field(description="One that comes with fedpress, or a YAML file (from the suite's folder).")
    set: tuple[str, ...] = Field(default=(), strict=False, description="Changes for all methods, KEY=VALUE each.")
    partitions: tuple[str, ...] = Field(
        default=(), strict=False, description="iid, natural, dirichlet-ALPHA, labels-COUNT; none: the scenario's own."
    )
    methods: tuple[str, ...] = Field(default=(), strict=False, description="None: all that are known.")
    seeds: Seeds = Field(default=(1, 2, 3), description="Such as 1-3 or [1, 5, 8].")
    targets: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(), strict=False, description="Accuracies, as fractions, to which rounds, bytes and time are counted."
    )


class Cell(NamedTuple):
    """One run of a suite.

    Attributes:
        grid: Index of its grid in the suite.
        task: Name of the scenario.
        partition: Name of the partition, as `partition_changes` reads it.
        method: Name of the method.
        seed: Seed of the run.
        scenario: The complete scenario, with the seed.
    """

    grid: int
    task: str
    partition: str
    method: str
    seed: int
    scenario: Scenario

    @property
    def configuration(self) -> str:
        """Return a hash of the scenario without the number of workers, which does not affect the result.

        Only values that differ from their defaults are hashed, so that keys added in later versions keep the hash.
        """
        text = json.dumps(
            self.scenario.model_dump(mode="json", exclude={"workers"}, exclude_defaults=True), sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Return a file name for it."""
        return f"{self.task}_{self.partition}_{self.method}_{self.seed}_{self.configuration}"


class Suite(Section):
    """A whole suite."""

    name: str = Field(default="suite", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names its folder.")
    methods: dict[str, Method] = Field(default={}, description="Methods of its own, or others in place of known ones.")
    grids: Annotated[tuple[Grid, ...], BeforeValidator(_some)] = Field(
        strict=False, description="What is crossed with what."
    )
    networks: tuple[str, ...] = Field(
        default=("fibre", "wifi", "lte", "3g", "lora-like"),
        strict=False,
        description="Networks by name, to count the time to an accuracy on.",
    )

    @field_validator("networks")
    @classmethod
    def _known_networks(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in network.PROFILES:
                raise ValueError(f"{name!r}: expected {suggest.choices(network.PROFILES, name)}")
        return given

    @property
    def known(self) -> dict[str, Method]:
        """Return all methods by name, in the order of tables."""
        return {**published(), **self.methods}

    def cells(
        self,
        *,
        only: Sequence[str] = (),
        seeds: Sequence[int] = (),
        overrides: Sequence[str] = (),
        folder: Path = Path(),
    ) -> list[Cell]:
        """Return the cells, each once, in the order of the suite.

        Args:
            only: Methods to use of each grid; empty: all of the grid's.
            seeds: Seeds in place of each grid's; empty: the grid's.
            overrides: Changes of every scenario, after all others.
            folder: Folder of scenario files.

        Raises:
            SuiteError: A name is unknown, or a scenario is not valid with the changes of a method or partition.
        """
        problems: dict[str, None] = {}
        known = self.known
        for name in only:
            if name not in known:
                problems[f"method {name!r}: expected {suggest.choices(known, name)}"] = None
        found: dict[str, Cell] = {}
        for number, grid in enumerate(self.grids):
            place = f"grids.{number}"
            for name in grid.methods:
                if name not in known:
                    problems[f"{place}.methods: {name!r}: expected {suggest.choices(known, name)}"] = None
            names = [name for name in (grid.methods or known) if name in known and (not only or name in only)]
            for partition in grid.partitions or ("",):
                try:
                    changes = partition_changes(partition)
                except ValueError as error:
                    problems[f"{place}.partitions: {error}"] = None
                    continue
                for name in names:
                    try:
                        given = _scenario(grid.scenario, folder)
                        bare = scenarios.load(given, grid.set)
                        method = known[name]
                        tuned = method.tuned.get(bare.name, ())
                        whole = [*grid.set, *changes, *method.set, *tuned, *overrides]
                        base = scenarios.load(given, ["students={tiers: []}", *whole])
                    except FedpressError as error:
                        problems[f"{place}, {name}: {error}"] = None
                        continue
                    for seed in seeds or grid.seeds:
                        seeded = base.model_copy(update={"seed": seed})
                        cell = Cell(number, base.name, partition or partition_name(base), name, seed, seeded)
                        found.setdefault(cell.name, cell)
        if problems:
            raise SuiteError("\n  ".join([f"suite {self.name}: {len(problems)} problem(s)", *problems]))
        if not found:
            raise SuiteError(f"suite {self.name}: no cell is left with the methods {', '.join(only)}")
        return list(found.values())


def partition_changes(name: str) -> list[str]:
    """Return a partition's changes of a scenario.

    >>> partition_changes("dirichlet-0.3")
    ['partition.kind=dirichlet', 'partition.alpha=0.3']

    Raises:
        ValueError: There is no partition of this name.
    """
    if not name:
        return []
    kind, _, number = name.partition("-")
    key = {"dirichlet": "alpha", "labels": "labels_per_client"}.get(kind)
    number_is_one = re.fullmatch(r"[0-9]+" if kind == "labels" else r"[0-9]*\.?[0-9]+", number) is not None
    if (key is not None) != number_is_one or (key is None and (number or kind not in ("iid", "natural"))):
        raise ValueError(f"got {name!r}, expected iid, natural, dirichlet-ALPHA such as dirichlet-0.3, or labels-COUNT")
    changes = [f"partition.kind={kind}"]
    if key is not None:
        changes.append(f"partition.{key}={float(number) if key == 'alpha' else number}")
    return changes if kind != "natural" else [*changes, "partition.sizes=natural"]


def partition_name(scenario: Scenario) -> str:
    """Return the name of a scenario's partition, as `partition_changes` takes it."""
    choice = scenario.partition
    number = {"dirichlet": f"-{choice.alpha:g}", "labels": f"-{choice.labels_per_client}"}.get(choice.kind, "")
    return f"{choice.kind}{number}"


@functools.cache
def published() -> dict[str, Method]:
    """Return the methods that come with fedpress, by name."""
    raw = yaml_source.read((FOLDER / "methods.yaml").read_text(encoding="utf-8"))
    return {name: Method.model_validate(given or {}) for name, given in raw.items()}


def names() -> list[str]:
    """Return the suites that come with fedpress."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(path_or_name: str | Path) -> Suite:
    """Read a suite.

    Args:
        path_or_name: Name of a suite that comes with fedpress, or a YAML file.

    Raises:
        SuiteError: There is no such suite, or it is not valid: all problems are listed.
    """
    path = SUITES / f"{path_or_name}.yaml" if str(path_or_name) in names() else Path(path_or_name)
    if not path.is_file():
        raise SuiteError(
            f"suite {str(path_or_name)!r}: there is no such file; expected a YAML file, or one of"
            f" {suggest.choices(names(), path.stem)}"
        )
    try:
        raw = yaml_source.read(files.read_text(path))
    except (OSError, ValueError) as error:
        raise SuiteError(f"suite {path}: {error}") from None
    raw.setdefault("name", path.stem)
    try:
        return Suite.model_validate(raw)
    except ValidationError as error:
        lines = diagnostics.explain(error, Suite)
        raise SuiteError("\n  ".join([f"suite {path}: {len(lines)} problem(s)", *lines])) from None


def _scenario(given: str, folder: Path) -> str | Path:
    beside = folder / given
    return given if given in scenarios.names() or not beside.exists() else beside
