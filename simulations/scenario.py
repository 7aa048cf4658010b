"""Scenarios: a whole run in one YAML file, checked key by key before anything starts.

>>> scenario = load("digits", ["rounds=3", "partition.alpha=0.1"])
>>> scenario.rounds, scenario.partition.alpha
(3, 0.1)
>>> load("digits", ["round=3"])
Traceback (most recent call last):
fedpress.simulations.scenario.ScenarioError: scenario 'digits': 1 problem
  round: unknown key (value given: 3); did you mean 'rounds'?
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedpress.compression import recipes, values
from fedpress.compression.encoder import Encoder
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.sparse_training import AtInitialisation
from fedpress.simulations import scenario_errors, scenario_yaml
from fedpress.simulations.sections import Fraction, Positive, Section, of_name
from fedpress.simulations.student_sections import FusionChoice, Students, Teaching, Tier  # noqa: F401 - Tier is a part of it
from fedpress.simulations.tasks import registry

FOLDER = Path(__file__).parent / "scenarios"
"""The scenarios that come with fedpress."""


class ScenarioError(FedpressError, ValueError):
    """A scenario cannot be read; the text lists every problem with its key, the value given and what is allowed."""


class TaskChoice(Section):
    """Model, data and loss. Keys besides these two are options of the task, such as `data_dir` of fashion-mnist."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="A built-in task (digits, fashion-mnist, text) or your own class as 'module:Class'.")
    folder: str | None = Field(
        default=None,
        description="Where the module of your own class is looked for; by default beside the scenario file.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        registry.check_name(name)
        return name

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the task's class."""
        return dict(self.model_extra or {})


class Partition(Section):
    """Which client has which training examples."""

    kind: Literal["iid", "dirichlet", "labels", "natural"] = Field(
        default="dirichlet",
        description="iid: at random; dirichlet: skewed labels; labels: few labels for each client; natural: by the"
        " task's own groups, a client is a book of `text`.",
    )
    alpha: Positive = Field(
        default=0.5, description="Dirichlet concentration: 0.1 is very skewed, 100 is close to iid."
    )
    labels_per_client: int = Field(default=2, ge=1, description="How many labels a client has, for kind labels.")
    sizes: Literal["natural", "equal"] = Field(
        default="natural", description="natural: as the draw falls, uneven; equal: N // clients examples for everyone."
    )

    @model_validator(mode="after")
    def _groups_as_they_are(self) -> Partition:
        if self.kind == "natural" and self.sizes == "equal":
            raise ValueError("sizes: equal does not go with kind natural, whose groups keep their own sizes")
        return self


class Sampling(Section):
    """Who takes part in a round, and when the round closes."""

    schedule: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="synchronous: all clients of a round train from the same model; buffered: FedBuff, clients work all"
        " the time, and the model steps once per_round replies are in. buffered needs network.",
    )
    per_round: int = Field(default=10, ge=1, description="Clients whose replies a round waits for.")
    concurrency: int | None = Field(default=None, ge=1, description="For buffered: clients at work at any time.")
    staleness: float = Field(
        default=0.5,
        ge=0,
        description="For buffered: a reply s steps behind counts (1 + s)^-staleness of its examples; 0: all alike.",
    )
    max_staleness: int | None = Field(
        default=None, ge=0, description="For buffered: replies that are more steps behind are refused."
    )
    over_selection: int = Field(
        default=0,
        ge=0,
        description="Clients asked besides; the round closes with the first per_round replies. Needs network.",
    )
    min_replies: int = Field(default=1, ge=1, description="Good replies below which a round changes nothing.")
    deadline: Positive | None = Field(
        default=None, description="Virtual seconds after which a round closes without the late ones. Needs network."
    )


class Training(Section):
    """What a client does with the model: SGD in PyTorch."""

    epochs: int | None = Field(
        default=None, ge=1, description="Local passes over the client's examples; 1 without steps."
    )
    steps: int | None = Field(default=None, ge=1, description="Local steps, in place of epochs.")
    batch_size: int = Field(default=32, ge=1, description="Examples in a step.")
    learning_rate: Positive = Field(default=0.1, description="Local learning rate.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Local momentum; starts from zero in every round.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty of the local steps.")
    proximal: float = Field(
        default=0.0, ge=0, description="FedProx's mu: pulls towards the weights that training started from."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the local forward and backward pass; bfloat16 is faster on recent processors (autocast), and"
        " the weights stay float32.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where clients train and models are evaluated: cpu or cuda."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps: give one and set the other to null")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        return self


class EncoderChoice(Section):
    """What a client sends of its update: its parts, or a recipe. The share of entries is the top-level `density`."""

    recipe: str | None = Field(
        default=None,
        description=f"A published method in place of kind, scope, values and feedback: {', '.join(recipes.RECIPES)}.",
    )
    bits: int | None = Field(default=None, description="For the recipes qsgd (2 to 8) and eden (1 to 4).")
    rank: int | None = Field(default=None, description="For the recipe powersgd.")
    kind: Literal["top_k", "random_k", "dense"] = Field(
        default="top_k",
        description="top_k: the largest entries; random_k: random ones; dense: everything, as FedAvg does.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="top_k over the whole model, or in every tensor by itself."
    )
    values: str = Field(default="step", description=f"Number format of the entries sent: {', '.join(values.names())}.")
    feedback: Literal["none", "residual", "step_ahead", "cafe"] = Field(
        default="step_ahead",
        description="What happens to the entries not sent: none: lost; residual: added to the next update (error"
        " feedback); step_ahead: besides, training starts from the model plus what is kept back (SA-PEF); cafe: lost,"
        " but what is sent is the difference from how the model moved lately (CAFe). Needs downlink and optimizer sgd.",
    )
    residual: Literal["float32", "float16"] = Field(
        default="float32",
        description="How a client keeps what it keeps back: float16 takes half the disk; what its rounding drops is"
        " counted.",
    )
    clip_norm: Positive | None = Field(
        default=None, description="Largest L2 norm of an update; longer ones are scaled down."
    )
    warm_up_rounds: int = Field(default=0, ge=0, description="Rounds in which the density falls to its value (DGC).")
    warm_up_density: Fraction = Field(default=0.25, description="Density in the first round of the warm-up.")

    @field_validator("values")
    @classmethod
    def _format(cls, name: str) -> str:
        if name not in values.names():
            raise ValueError(f"expected {scenario_errors.choices(values.names(), name)}")
        return name

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in recipes.RECIPES:
            raise ValueError(f"expected {scenario_errors.choices(recipes.RECIPES, name)}")
        return name

    @model_validator(mode="after")
    def _of_the_recipe(self) -> EncoderChoice:
        takes = recipes.RECIPES[self.recipe].takes if self.recipe else ()
        for key in ("bits", "rank"):
            if getattr(self, key) is not None and key not in takes:
                taking = [name for name, recipe in recipes.RECIPES.items() if key in recipe.takes]
                raise ValueError(f"{key} is for the recipes {', '.join(taking)}; recipe is {self.recipe or 'null'}")
        if self.residual != "float32" and self.feedback in ("none", "cafe"):
            raise ValueError(
                f"residual {self.residual} has no meaning with feedback {self.feedback}: nothing is kept back"
            )
        if self.recipe is None:
            return self
        for key in ("kind", "scope", "values", "feedback", "residual"):
            if self.changed(key):
                raise ValueError(f"{key} has no meaning beside recipe {self.recipe}, which rules it; leave one out")
        if self.warm_up_rounds and "density" not in takes:
            raise ValueError(f"warm_up_rounds has no meaning for recipe {self.recipe}, which has no density")
        self.made_by_recipe(1.0)  # refuses bits or a rank out of range
        return self

    def made_by_recipe(self, density: float) -> Encoder[Any]:
        """Return the encoder of the recipe, which must be given."""
        recipe = recipes.RECIPES[str(self.recipe)]
        options = {"density": density, "bits": self.bits, "rank": self.rank}
        return recipe.make(**{key: options[key] for key in recipe.takes if options[key] is not None})


class DownlinkChoice(Section):
    """How the model goes down: clients keep it, and get what has changed since they were last here."""

    density: Fraction = Field(default=0.005, description="Share of the model's entries that one round changes.")
    levels: int = Field(
        default=1, ge=1, le=255, description="Steps that an entry may move in a round; 1: all move as far (ternary)."
    )


class ServerOptimizer(Section):
    """How the server steps along the mean update (Reddi et al., "Adaptive Federated Optimization", 2021)."""

    optimizer: Literal["sgd", "adam", "yogi", "adagrad", "majority_vote"] = Field(
        default="sgd",
        description="Rule of the step: sgd, adam, yogi, adagrad; majority_vote for the encoder signsgd, every weight"
        " moves by the learning rate.",
    )
    learning_rate: Positive = Field(default=1.0, description="Server learning rate; 1 with sgd is FedAvg.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="For sgd.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="For adam and yogi: decay of the first moment.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="For adam and yogi: decay of the second moment.")
    epsilon: float = Field(
        default=1e-3,
        ge=1e-3,
        description="For adam, yogi and adagrad: keeps coordinates that nobody sends from exploding.",
    )

    averaging: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the mean of the models of all rounds, which is then what is evaluated and published; 0.9:"
        " of about ten rounds; 0: the newest model.",
    )

    @model_validator(mode="after")
    def _used(self) -> ServerOptimizer:
        takes: dict[str, set[str]] = {"sgd": {"momentum"}, "adagrad": {"epsilon"}, "majority_vote": set()}
        own = takes.get(self.optimizer, {"beta1", "beta2", "epsilon"})
        for key in ("momentum", "beta1", "beta2", "epsilon"):
            if key not in own and self.changed(key):
                raise ValueError(f"{key} has no meaning for optimizer {self.optimizer}, which takes {sorted(own)}")
        return self


class Sparsity(Section):
    """Which weights the model in training has; clients train, send and get those only."""

    method: Literal["snip", "grasp", "synflow", "erk", "magnitude", "gradual", "feddst", "rigl"] = Field(
        default="snip",
        description="snip, grasp, synflow, erk (at random) or magnitude: a mask before round 1 that stays; gradual:"
        " pruned by magnitude as training goes; feddst, rigl: the mask moves, clients vote on it.",
    )
    density: Fraction = Field(
        default=0.1, description="Share of the weights that is left; biases and the like all are."
    )
    scope: Literal["global", "layer", "erk"] | None = Field(
        default=None,
        description="Who competes: all weights, those of a layer (each with the same density), or those of a layer with"
        " ERK densities. null: erk for erk, feddst and rigl, layer for gradual, else global.",
    )
    start: Literal["snip", "grasp", "synflow", "erk", "magnitude"] = Field(
        default="erk", description="For feddst and rigl: how their first mask is made."
    )
    begin: int = Field(default=0, ge=0, description="For gradual: round in which its cubic schedule starts.")
    end: int | None = Field(
        default=None,
        ge=1,
        description="For gradual: round after which the density is reached; for feddst and rigl: round from which"
        " on the mask stays. null: two thirds of the rounds.",
    )
    every: int = Field(default=5, ge=1, description="For gradual, feddst and rigl: rounds from one change to the next.")
    fraction: Fraction = Field(
        default=0.3,
        description="For feddst and rigl: share of a layer's weights that is exchanged, at first; falls by a cosine.",
    )

    @property
    def initial(self) -> AtInitialisation | None:
        """How the first mask is made; None: all weights are there at first."""
        if self.method == "gradual":
            return None
        moving = self.method in ("feddst", "rigl")
        method: Any = self.start if moving else self.method
        scope = self.scope or ("erk" if moving else None)
        return AtInitialisation(method, self.density, scope)

    @property
    def changes(self) -> bool:
        """Whether the mask changes during the rounds."""
        return self.method in ("gradual", "feddst", "rigl")

    @model_validator(mode="after")
    def _used(self) -> Sparsity:
        takes = {"gradual": {"begin", "end", "every"}}
        own = takes.get(self.method, {"start", "end", "every", "fraction"} if self.changes else set())
        for key in ("start", "begin", "end", "every", "fraction"):
            if key not in own and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning for method {self.method}")
        _ = self.initial  # refuses what does not go together
        return self


class Evaluation(Section):
    """When and on what the server evaluates the model that clients hold. Round 1 and the last 10 always are."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    split: Literal["test", "validation", "proxy"] = Field(
        default="test",
        description="test: for what is reported; validation: for whatever is chosen by it, such as a learning rate;"
        " proxy: the same on the larger part that students are distilled on, for runs without students.",
    )


class NetworkChoice(Section):
    """Links and speeds of the clients on a virtual clock: it decides who is late, and costs no real time."""

    up_mbit: Positive = Field(default=1.0, description="Upload of the median client, 10^6 bits a second.")
    down_mbit: Positive = Field(default=10.0, description="Download of the median client.")
    examples_per_second: Positive = Field(default=100.0, description="Training speed of the median client.")
    latency: float = Field(default=0.1, ge=0, description="Seconds a message takes besides its bytes, each way.")
    spread: float = Field(
        default=0.5, ge=0, description="Unevenness: deviation of the logarithms; 0: all clients alike."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Chance that a client does not answer. Needs a deadline."
    )


class FaultChoice(Section):
    """What goes wrong on purpose: a chance of each fault for every client and round."""

    crashes: float = Field(default=0.0, ge=0, le=1, description="A client dies at work; its state stays as it was.")
    forgets: float = Field(default=0.0, ge=0, le=1, description="A client starts without the state that it had kept.")
    diverges: float = Field(default=0.0, ge=0, le=1, description="Its training ends in NaN.")
    lost: float = Field(default=0.0, ge=0, le=1, description="Its reply never arrives.")
    doubled: float = Field(default=0.0, ge=0, le=1, description="Its reply arrives twice.")
    late: float = Field(default=0.0, ge=0, le=1, description="Its reply takes late_seconds more.")
    damaged: float = Field(default=0.0, ge=0, le=1, description="A bit of its update flips on the way.")
    late_seconds: Positive = Field(default=60.0, description="Virtual seconds.")


class Scenario(Section):
    """Everything that a run depends on; the same scenario gives the same model, to the bit."""

    name: str = Field(
        default="scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run's folder."
    )
    task: Annotated[TaskChoice, BeforeValidator(of_name("name"))] = Field(
        description="A name, or {name, and the task's options}."
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
    partition: Partition = Field(default=Partition(), description="Which client has which examples.")
    sampling: Sampling = Field(default=Sampling(), description="Who takes part in a round.")
    training: Training = Field(default=Training(), description="What a client does.")
    encoder: Annotated[EncoderChoice, BeforeValidator(of_name("recipe"))] = Field(
        default=EncoderChoice(), description="What a client sends: a recipe's name, or its parts."
    )
    server: ServerOptimizer = Field(default=ServerOptimizer(), description="What the server does with it.")
    sparsity: Annotated[Sparsity | None, BeforeValidator(of_name("method"))] = Field(
        default=None, description="Which weights the model has: a method's name, or its settings; null: all of them."
    )
    downlink: DownlinkChoice | None = Field(
        default=DownlinkChoice(), description="How the model goes down; null: whole, in every round."
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="When the model is evaluated.")
    fusion: FusionChoice | None = Field(
        default=None, description="Let the client models of a round teach the global one (FedDF); null: no."
    )
    students: Students = Field(default=Students(), description="The small models made from it.")
    teaching: Teaching | None = Field(
        default=None, description="How tiers that train teach each other; null: no tier trains."
    )
    network: NetworkChoice | None = Field(
        default=None, description="Links and speeds of the clients; null: time stands still."
    )
    faults: FaultChoice | None = Field(default=None, description="What goes wrong on purpose; null: nothing.")

    @model_validator(mode="after")
    def _together(self) -> Scenario:
        sampling, encoder = self.sampling, self.encoder
        problems = []
        if sampling.schedule == "buffered":
            if sampling.concurrency is None:
                problems.append(
                    "sampling.concurrency: missing; for buffered, the number of clients at work at any time,"
                    f" such as {2 * sampling.per_round}"
                )
            if self.network is None:
                problems.append("sampling.schedule: buffered needs `network`; without it all replies come at once")
            if sampling.over_selection:
                problems.append("sampling.over_selection: has no meaning for a buffered schedule; raise concurrency")
        else:
            for key in ("concurrency", "staleness", "max_staleness"):
                if sampling.changed(key):
                    problems.append(f"sampling.{key}: needs `sampling.schedule: buffered`")
        asked = self.clients_at_work
        if asked > self.clients:
            problems.append(
                f"sampling.{'concurrency' if sampling.concurrency else 'per_round + over_selection'}: {asked} clients"
                f" asked each round, but clients is {self.clients}"
            )
        if sampling.min_replies > sampling.per_round:
            problems.append(
                f"sampling.min_replies: got {sampling.min_replies}, expected at most per_round, {sampling.per_round}"
            )
        if self.network is None:
            for key in ("over_selection", "deadline"):
                if getattr(sampling, key):
                    problems.append(f"sampling.{key}: needs `network`; without it all replies come at the same time")
        elif self.network.dropout > 0 and sampling.deadline is None:
            problems.append("network.dropout: needs `sampling.deadline`; a round would wait for ever")
        if encoder.warm_up_rounds >= self.rounds:
            problems.append(
                f"encoder.warm_up_rounds: got {encoder.warm_up_rounds}, expected less than rounds, {self.rounds}"
            )
        if encoder.warm_up_rounds and encoder.warm_up_density < self.density:
            problems.append(
                f"encoder.warm_up_density: got {encoder.warm_up_density}, expected at least density, {self.density}"
            )
        if (encoder.recipe == "signsgd") != (self.server.optimizer == "majority_vote"):
            problems.append(
                f"server.optimizer: got {self.server.optimizer!r} with encoder.recipe {encoder.recipe!r}; signsgd and"
                " majority_vote go together, such as server={optimizer: majority_vote, learning_rate: 0.001}"
            )
        if encoder.feedback == "cafe" and (self.downlink is None or self.server.optimizer != "sgd"):
            problems.append(
                "encoder.feedback: cafe predicts from what goes down, in steps of sgd; it needs `downlink` and"
                f" server.optimizer sgd, got {self.server.optimizer!r}"
            )
        problems += [*self._tiers_that_train(), *self._sparsity_problems()]
        if problems:
            raise scenario_errors.Problems(problems)
        return self

    def _tiers_that_train(self) -> list[str]:
        """What does not go together with tiers that train."""
        training, teaching = [tier.name for tier in self.students.tiers if tier.trains], self.teaching
        if teaching is None:
            return [
                f"students.tiers: {name} trains, but there is no `teaching`, which says who trains the global model;"
                " such as teaching={global_model: trained, every: 5}"
                for name in training[:1]
            ]
        if not training:
            return ["teaching: no tier trains; say so where the tier is: {name: ..., parameters: ..., trains: true}"]
        problems, sampling = [], self.sampling
        models = len(self.groups)
        if models > self.clients:
            idle = [tier.name for tier in self.groups[self.clients :] if tier]
            problems.append(
                f"students.tiers: no client is of tier {', '.join(idle)}; {models} models are trained, and clients is"
                f" {self.clients}"
            )
        elif models > sampling.per_round:
            problems.append(
                f"sampling.per_round: got {sampling.per_round}, expected at least {models}, a client for each model"
                " that is trained"
            )
        elif sampling.min_replies > min(self.shares(sampling.per_round)):
            problems.append(
                f"sampling.min_replies: got {sampling.min_replies}, expected at most"
                f" {min(self.shares(sampling.per_round))}, the clients that a tier has in a round"
            )
        if sampling.schedule == "buffered":
            problems.append("sampling.schedule: buffered has no tiers that train; take synchronous rounds")
        if self.encoder.feedback == "cafe":
            problems.append(
                "encoder.feedback: cafe predicts from steps that clients have made, and teaching makes others"
            )
        if teaching.method == "slices":
            if other := [tier.name for tier in self.students.tiers if tier.trains and tier.student != "pruned"]:
                problems.append(f"students.tiers: {other[0]} is no slice of the global model; leave `student` out")
            if teaching.global_model == "distilled":
                problems.append(
                    "teaching.global_model: distilled has no meaning with method slices, which distils nothing"
                )
            for key in ("every", "combine", "epochs", "learning_rate", "temperature", "density", "levels"):
                if teaching.changed(key):
                    problems.append(f"teaching.{key}: has no meaning with method slices, which averages in every round")
        elif teaching.every > self.rounds:
            problems.append(f"teaching.every: got {teaching.every}, expected at most rounds, {self.rounds}; 0: never")
        return problems

    @property
    def groups(self) -> tuple[Tier | None, ...]:
        """Whose models clients train: tiers, and None for the global model. Client i is of group i modulo their number.

        One group, the global model's, where no tier trains.
        """
        tiers = tuple(tier for tier in self.students.tiers if tier.trains)
        return tiers if tiers and self.teaching and self.teaching.global_model == "distilled" else (None, *tiers)

    def shares(self, count: int) -> list[int]:
        """Divide clients of a round among the groups, as evenly as the groups divide all clients."""
        return [len(range(group, count, len(self.groups))) for group in range(len(self.groups))]

    def _sparsity_problems(self) -> list[str]:
        sparsity, problems = self.sparsity, []
        if sparsity is None:
            return []
        if self.encoder.recipe == "powersgd":
            problems.append(
                "sparsity: got encoder.recipe 'powersgd', whose factors need whole matrices; choose another"
            )
        for key, there in (
            ("teaching", self.teaching is not None),
            ("fusion", self.fusion is not None),
            ("students.teachers", self.students.teachers == "clients"),
        ):
            if there:
                problems.append(f"sparsity: does not go together with {key}, whose models have all of their weights")
        if sparsity.method in ("feddst", "rigl") and self.sampling.schedule == "buffered":
            problems.append(
                f"sparsity.method: {sparsity.method} merges the votes of a round, which a buffered schedule has not;"
                " use synchronous, or a method whose mask stays, such as snip"
            )
        if sparsity.changes and not sparsity.begin < self.mask_end <= self.rounds:
            problems.append(
                f"sparsity.end: got {self.mask_end} with begin {sparsity.begin}, expected begin < end <= rounds,"
                f" {self.rounds}"
            )
        return problems

    @property
    def mask_end(self) -> int:
        """Round after which the mask stays."""
        given = self.sparsity.end if self.sparsity else None
        return given if given is not None else max(1, self.rounds * 2 // 3)

    @property
    def worker_count(self) -> int:
        """Worker processes to start: `workers`, or one for each usable core; never more than clients at work."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.workers or cores, self.clients_at_work)

    @property
    def clients_at_work(self) -> int:
        """How many clients are asked at the same time."""
        return self.sampling.concurrency or self.sampling.per_round + self.sampling.over_selection

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """Read what `to_json` wrote.

        Raises:
            ScenarioError: It is no valid scenario.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _invalid("from JSON", error) from None

    def to_json(self) -> str:
        """The whole scenario, defaults included, on one line."""
        return self.model_dump_json()

    def to_yaml(self) -> str:
        """The whole scenario, defaults included; `load` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def names() -> list[str]:
    """The scenarios that come with fedpress."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario.

    Args:
        path_or_name: Name of a scenario that comes with fedpress, a YAML file, or a folder with a scenario.yaml.
        overrides: "key=value" each, nested keys with dots ("partition.alpha=0.1"), values in YAML; applied in order.

    Raises:
        ScenarioError: No such scenario, no YAML, or invalid: all problems are listed.
    """
    path = _locate(path_or_name)
    try:
        raw = scenario_yaml.read(path.read_text(encoding="utf-8"))
        for override in overrides:
            scenario_yaml.override(raw, override)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"scenario {str(path_or_name)!r}: {error}") from None
    raw.setdefault("name", path.parent.name if path.stem == "scenario" else path.stem)
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise _invalid(repr(str(path_or_name)), error) from None
    if ":" not in scenario.task.name or scenario.task.folder is not None:
        return scenario
    # Worker processes and reports find the class too, wherever they are started.
    task = scenario.task.model_copy(update={"folder": str(path.parent.resolve())})
    return scenario.model_copy(update={"task": task})


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
        f" {scenario_errors.choices(known, given.stem)}"
    )


def _invalid(origin: str, error: ValidationError) -> ScenarioError:
    problems = scenario_errors.explain(error, Scenario)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return ScenarioError("\n  ".join([f"scenario {origin}: {count}", *problems]))
