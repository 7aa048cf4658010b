"""Scenarios: a whole run in one YAML file, checked key by key before anything starts.

>>> scenario = load("digits", ["rounds=3", "partition.alpha=0.1"])
>>> scenario.rounds, scenario.partition.alpha
(3, 0.1)
>>> load("digits", ["round=3"])  # doctest: +IGNORE_EXCEPTION_DETAIL
Traceback (most recent call last):
fedpress.simulations.scenario.scenario.ScenarioError: scenario 'digits': 1 problem
  round: unknown key (value given: 3); did you mean 'rounds'?
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationError, model_validator

from fedpress.client.settings import Training
from fedpress.compression import files, safetensors_files, suggest
from fedpress.compression.errors import FedpressError
from fedpress.compression.settings import ADVANCED, Field, Fraction
from fedpress.server.checkpoint.settings import BUDGET
from fedpress.server.fusion.settings import FedDF, Teaching
from fedpress.server.model.mask_schedules import Sparsity
from fedpress.server.model.settings import DownlinkSettings, OptimizerSettings
from fedpress.simulations.conditions.faults import Chances
from fedpress.simulations.conditions.network import NetworkSettings
from fedpress.simulations.scenario import diagnostics, yaml_source
from fedpress.simulations.scenario.encoder import EncoderSettings
from fedpress.simulations.scenario.rounds import BaseChoice, EvaluationSettings, SamplingSettings, TaskChoice
from fedpress.simulations.scenario.section import Section, of_name
from fedpress.simulations.scenario.students import ADAPTER, Students, Tier, from_recipe
from fedpress.simulations.tasks.partition import Partition

FOLDER = Path(__file__).parents[1] / "scenarios"
"""Folder of the scenarios that come with fedpress."""


class ScenarioError(FedpressError, ValueError):
    """Invalid scenario; the text lists every problem with its key, the value given and what is allowed."""


class Scenario(Section):
    """Everything that a run depends on; the same scenario gives the same model, to the bit."""

    name: str = Field(
        default="scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run's folder."
    )
    task: Annotated[TaskChoice, BeforeValidator(of_name("name"))] = Field(
        description="A name, or {name, and the task's options}."
    )
    init: str | None = Field(
        default=None,
        description="A safetensors file, or a folder of them, with all initial weights and buffers that are trained;"
        " null: what the task's model() returns under the seed.",
    )
    base: Annotated[BaseChoice | None, BeforeValidator(of_name("path"))] = Field(
        default=None,
        description="Pretrained weights, agreed by their hash and sent once to a device without a copy: a safetensors"
        " file or folder, or {path, sha256}; null: none.",
    )
    clients: int = Field(ge=1, description="How many clients share the training data.")
    rounds: int = Field(ge=1, description="How many rounds.")
    density: Fraction = Field(
        default=0.01, description="Share of an update's entries that a client sends, 0 < density <= 1."
    )
    seed: int = Field(default=1, ge=0, lt=2**63, description="Draws everything: data, sampling, initial weights.")
    workers: int = Field(
        default=0, ge=0, description="Processes that train; 0: one for each core. The result does not depend on it."
    )
    checkpoint_budget: float = Field(
        default=BUDGET,
        ge=0,
        le=1,
        json_schema_extra=ADVANCED,
        description="Share of the run's time that whole checkpoints of the server may take; the rounds between them are"
        " kept in a journal of their updates. 1: a checkpoint after each round. The result does not depend on it.",
    )
    partition: Partition = Field(default=Partition(), description="Which client has which examples.")
    sampling: SamplingSettings = Field(default=SamplingSettings(), description="Who takes part in a round.")
    training: Training = Field(default=Training(), description="What a client does.")
    trainable: list[str] | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=ADVANCED,
        description='Patterns over the names of parameters, such as ["classifier.*", "*.lora_*"]: these are trained,'
        " sent and kept back, and all others are frozen, with the running statistics of their layers. null: those with"
        " requires_grad in the task's model().",
    )
    encoder: Annotated[EncoderSettings, BeforeValidator(of_name("recipe"))] = Field(
        default=EncoderSettings(), description="What a client sends: a recipe's name, or its parts."
    )
    server: OptimizerSettings = Field(default=OptimizerSettings(), description="What the server does with it.")
    sparsity: Annotated[Sparsity | None, BeforeValidator(of_name("method"))] = Field(
        default=None, description="Which weights the model has: a method's name, or its settings; null: all of them."
    )
    downlink: DownlinkSettings | None = Field(
        default=DownlinkSettings(), description="How the model goes down; null: whole, in every round."
    )
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="When the model is evaluated.")
    fusion: FedDF | None = Field(
        default=None, description="Let the client models of a round teach the global one (FedDF); null: no."
    )
    students: Annotated[Students, BeforeValidator(from_recipe)] = Field(
        default=Students(), description="The small models made from it: a recipe's name, or what they are."
    )
    teaching: Teaching | None = Field(
        default=None, description="How tiers that train teach each other; null: no tier trains."
    )
    network: Annotated[NetworkSettings | None, BeforeValidator(of_name("profile"))] = Field(
        default=None,
        description="Links and speeds of the clients: a profile's name, or {profile, and what differs}; null: time"
        " stands still.",
    )
    faults: Chances | None = Field(
        default=None, json_schema_extra=ADVANCED, description="What goes wrong on purpose; null: nothing."
    )

    @model_validator(mode="after")
    def _together(self) -> Scenario:
        """Check across sections; all problems are reported at once."""
        problems = [
            *self._schedule_problems(),
            *self._training_problems(),
            *self._round_problems(),
            *self._encoder_problems(),
            *self._adapter_problems(),
            *self._tiers_that_train(),
            *self._sparsity_problems(),
        ]
        if problems:
            raise diagnostics.Problems(problems)
        return self

    def _schedule_problems(self) -> Iterator[str]:
        """Yield keys that the buffered schedule lacks, and keys of it with another schedule."""
        sampling = self.sampling
        if sampling.schedule == "buffered":
            if sampling.concurrency is None:
                yield (
                    "sampling.concurrency: missing; for buffered, the number of clients at work at any time,"
                    f" such as {2 * sampling.clients_per_round}"
                )
            if self.network is None:
                yield "sampling.schedule: buffered needs `network`; without it all replies come at once"
            if sampling.over_selection:
                yield "sampling.over_selection: has no meaning for a buffered schedule; raise concurrency"
        else:
            for key in ("concurrency", "staleness_exponent", "max_staleness"):
                if sampling.changed(key):
                    yield f"sampling.{key}: needs `sampling.schedule: buffered`"

    def _training_problems(self) -> Iterator[str]:
        """Yield a warm-up that does not end."""
        if self.training.warmup_rounds >= self.rounds:
            yield f"training.warmup_rounds: {self.training.warmup_rounds:g} of {self.rounds} rounds, expected fewer"

    def _round_problems(self) -> Iterator[str]:
        """Yield problems of the number of clients and replies in a round, and of its end."""
        sampling = self.sampling
        if self.clients_at_work > self.clients:
            key = "concurrency" if sampling.concurrency else "clients_per_round + over_selection"
            yield f"sampling.{key}: {self.clients_at_work} clients asked each round, but clients is {self.clients}"
        if sampling.min_replies > sampling.clients_per_round:
            yield (
                f"sampling.min_replies: got {sampling.min_replies}, expected at most clients_per_round,"
                f" {sampling.clients_per_round}"
            )
        if self.network is None:
            for key in ("over_selection", "deadline"):
                if getattr(sampling, key):
                    yield f"sampling.{key}: needs `network`; without it all replies come at the same time"
        elif self.network.dropout > 0 and sampling.deadline is None:
            yield "network.dropout: needs `sampling.deadline`; a round would wait for ever"

    def _encoder_problems(self) -> Iterator[str]:
        """Yield problems of the encoder with rounds, server optimizer and downlink."""
        encoder, optimizer = self.encoder, self.server.optimizer
        if encoder.warm_up_rounds >= self.rounds:
            yield f"encoder.warm_up_rounds: got {encoder.warm_up_rounds}, expected less than rounds, {self.rounds}"
        largest = max([self.density, *(tier.density for tier in self.students.tiers if tier.density)])
        if encoder.warm_up_rounds and encoder.warm_up_density < largest:
            yield f"encoder.warm_up_density: got {encoder.warm_up_density}, expected at least density, {largest}"
        if (encoder.recipe == "signsgd") != (optimizer == "majority_vote"):
            yield (
                f"server.optimizer: got {optimizer!r} with encoder.recipe {encoder.recipe!r}; signsgd and"
                " majority_vote go together, such as server={optimizer: majority_vote, learning_rate: 0.001}"
            )
        if encoder.feedback == "cafe" and (self.downlink is None or optimizer != "sgd"):
            yield (
                "encoder.feedback: cafe predicts from what goes down, in steps of sgd; it needs `downlink` and"
                f" server.optimizer sgd, got {optimizer!r}"
            )

    def _adapter_problems(self) -> Iterator[str]:
        """Yield tiers whose bundles would name a base that there is not."""
        named = [tier.name for tier in self.students.tiers if tier.student == ADAPTER]
        if named and self.base is None:
            yield (
                f"students.tiers: the bundle of {named[0]} (student: adapter) names the pretrained weights that it"
                " builds on; such as base=FOLDER"
            )

    def _tiers_that_train(self) -> Iterator[str]:
        """Yield settings that do not go together with tiers that train."""
        training = [tier.name for tier in self.students.tiers if tier.trains]
        teaching, sampling, models = self.teaching, self.sampling, len(self.groups)
        if teaching is None:
            if training:
                yield (
                    f"students.tiers: {training[0]} trains, but there is no `teaching`, which says who trains the"
                    " global model; such as teaching={global_model: trained, every: 5}"
                )
            return
        if not training:
            yield "teaching: no tier trains; say so where the tier is: {name: ..., parameters: ..., trains: true}"
            return
        least = min(self.shares(sampling.clients_per_round))
        if models > self.clients:
            idle = ", ".join(tier.name for tier in self.groups[self.clients :] if tier)
            yield (
                f"students.tiers: no client is of tier {idle}; {models} models are trained, and clients is"
                f" {self.clients}"
            )
        elif models > sampling.clients_per_round:
            yield (
                f"sampling.clients_per_round: got {sampling.clients_per_round}, expected at least {models}, a client"
                " for each model that is trained"
            )
        elif sampling.min_replies > least:
            yield (
                f"sampling.min_replies: got {sampling.min_replies}, expected at most {least}, the clients that a tier"
                " has in a round"
            )
        if sampling.schedule == "buffered":
            yield "sampling.schedule: buffered has no tiers that train; take synchronous rounds"
        if self.encoder.feedback == "cafe":
            yield "encoder.feedback: cafe predicts from steps that clients have made, and teaching makes others"
        if teaching.method == "heterofl":
            yield from self._slice_problems(teaching)
        elif teaching.every > self.rounds:
            yield f"teaching.every: got {teaching.every}, expected at most rounds, {self.rounds}; 0: never"

    def _slice_problems(self, teaching: Teaching) -> Iterator[str]:
        """Yield settings that do not go together with slices of the global model (HeteroFL)."""
        tiers = self.students.tiers
        if paced := [tier.name for tier in tiers if tier.server_learning_rate is not None]:
            yield (
                f"students.tiers: server_learning_rate of {paced[0]} has no meaning with method heterofl, where the"
                " step is one for all; leave it out"
            )
        if teaching.global_model == "distilled":
            yield "teaching.global_model: distilled has no meaning with method heterofl, which distills nothing"
        for key in ("every", "combine", "epochs", "learning_rate", "temperature", "density", "levels"):
            if teaching.changed(key):
                yield f"teaching.{key}: has no meaning with method heterofl, which averages in every round"

    @property
    def groups(self) -> tuple[Tier | None, ...]:
        """Models that clients train: tiers, and None for the global model. Client i is of group i modulo their number.

        One group, the global model's, if no tier trains.
        """
        tiers = tuple(tier for tier in self.students.tiers if tier.trains)
        return tiers if tiers and self.teaching and self.teaching.global_model == "distilled" else (None, *tiers)

    def shares(self, count: int) -> list[int]:
        """Return how `count` clients of a round are divided among the groups, as evenly as all clients are."""
        return [len(range(group, count, len(self.groups))) for group in range(len(self.groups))]

    def _sparsity_problems(self) -> Iterator[str]:
        """Yield settings that do not go together with a mask."""
        sparsity = self.sparsity
        if sparsity is None:
            return
        if self.encoder.recipe == "powersgd":
            yield "sparsity: got encoder.recipe 'powersgd', whose factors need whole matrices; choose another"
        whole_models = {
            "teaching": self.teaching is not None,
            "fusion": self.fusion is not None,
            "students.teachers": self.students.teachers == "clients",
        }
        for key in (key for key, given in whole_models.items() if given):
            yield f"sparsity: does not go together with {key}, whose models have all of their weights"
        if sparsity.method in ("feddst", "rigl") and self.sampling.schedule == "buffered":
            yield (
                f"sparsity.method: {sparsity.method} merges the votes of a round, which a buffered schedule has not;"
                " use synchronous, or a method whose mask stays, such as snip"
            )
        if sparsity.changes and not sparsity.begin < self.mask_end <= self.rounds:
            yield (
                f"sparsity.end: got {self.mask_end} with begin {sparsity.begin}, expected begin < end <= rounds,"
                f" {self.rounds}"
            )

    @property
    def mask_end(self) -> int:
        """Last round that changes the mask."""
        given = self.sparsity.end if self.sparsity else None
        return given if given is not None else max(1, self.rounds * 2 // 3)

    @property
    def worker_count(self) -> int:
        """Number of worker processes: `workers`, or one for each usable core; at most clients at work."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.workers or cores, self.clients_at_work)

    @property
    def clients_at_work(self) -> int:
        """Number of clients that train at the same time."""
        return self.sampling.concurrency or self.sampling.clients_per_round + self.sampling.over_selection

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """Return the scenario that `to_json` wrote.

        Raises:
            ScenarioError: The text is not a valid scenario.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _invalid("from JSON", error) from None

    def to_json(self) -> str:
        """Return the whole scenario as JSON, defaults included, on one line."""
        return self.model_dump_json()

    def to_yaml(self) -> str:
        """Return the whole scenario as YAML, defaults included; `load` reads it back."""
        return yaml_source.write(self.model_dump(mode="json"))


def names() -> list[str]:
    """Return the names of the scenarios that come with fedpress."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario.

    Args:
        path_or_name: Name of a scenario that comes with fedpress, a YAML file, or a folder with a scenario.yaml.
        overrides: "key=value" each, nested keys with dots ("partition.alpha=0.1"), values in YAML; applied in order.

    Raises:
        ScenarioError: There is no such scenario, it is not YAML, or it is invalid; all problems are listed.
    """
    path = _locate(path_or_name)
    try:
        raw = yaml_source.read(files.read_text(path))
        for override in overrides:
            yaml_source.override(raw, override)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"scenario {str(path_or_name)!r}: {error}") from None
    raw.setdefault("name", path.resolve().parent.name if path.stem == "scenario" else path.stem)
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise _invalid(repr(str(path_or_name)), error) from None
    # Absolute paths, so that worker processes, reports and the run's copy of the scenario find the same files.
    if ":" in scenario.task.name and scenario.task.folder is None:
        task = scenario.task.model_copy(update={"folder": str(path.parent.resolve())})
        scenario = scenario.model_copy(update={"task": task})
    if not all(isinstance(step, str) for step in scenario.students.steps):
        folder = str(path.parent.resolve())
        steps = tuple(
            step if isinstance(step, str) else step.model_copy(update={"folder": step.folder or folder})
            for step in scenario.students.steps
        )
        students = scenario.students.model_copy(update={"steps": steps})
        scenario = scenario.model_copy(update={"students": students})
    beside = Path() if path.parent == FOLDER else path.parent  # fedpress's own folder holds no user's files
    if scenario.init is not None:
        file = str((beside / Path(scenario.init).expanduser()).resolve())
        scenario = scenario.model_copy(update={"init": file})
    if scenario.base is not None:
        scenario = scenario.model_copy(update={"base": _agreed(scenario.base, beside, str(path_or_name))})
    if scenario.network is not None and scenario.network.trace is not None:
        trace = str((beside / Path(scenario.network.trace).expanduser()).resolve())
        scenario = scenario.model_copy(update={"network": dataclasses.replace(scenario.network, trace=trace)})
    return scenario


def _agreed(base: BaseChoice, beside: Path, origin: str) -> BaseChoice:
    """Return the base with an absolute path, and with the hash that clients compare theirs with."""
    if base.path is None:
        raise ScenarioError(
            f"scenario {origin!r}: base.path: missing; expected a safetensors file, or a folder of them"
        )
    path = (beside / Path(base.path).expanduser()).resolve()
    try:
        sha256 = base.sha256 or safetensors_files.sha256(path)
    except safetensors_files.WeightsError as error:
        raise ScenarioError(f"scenario {origin!r}: base.path: {error}") from None
    return base.model_copy(update={"path": str(path), "sha256": sha256})


def _locate(path_or_name: str | Path) -> Path:
    known, given = names(), Path(path_or_name)
    if str(path_or_name) in known:
        return FOLDER / f"{path_or_name}.yaml"
    path = given / "scenario.yaml" if given.is_dir() else given
    if path.is_file():
        return path
    what = f"{given} has no scenario.yaml" if given.is_dir() else "there is no such file"
    raise ScenarioError(
        f"scenario {str(path_or_name)!r}: {what}; expected a YAML file, a folder with a scenario.yaml, or one of"
        f" {suggest.choices(known, given.stem)}"
    )


def _invalid(origin: str, error: ValidationError) -> ScenarioError:
    problems = diagnostics.explain(error, Scenario)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return ScenarioError("\n  ".join([f"scenario {origin}: {count}", *problems]))
