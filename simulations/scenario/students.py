"""The sections of a scenario that are about students: whom they are for, how they are made, who trains them.

A section whose keys are the fields of settings elsewhere returns these (`settings`), which is where they are checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedpress.compression.settings import Fraction, Positive
from fedpress.simulations.scenario.section import Section, of_name

if TYPE_CHECKING:
    from fedpress.compression.models.distillation.distill import Distillation
    from fedpress.compression.models.pruning.schedule import Pruning
    from fedpress.compression.models.quantization.quantize import Quantization


class Device(Section):
    """How fast a device is: milliseconds for each unit of what a model costs, as `fedpress probe` measures them."""

    call_ms: float = Field(ge=0, description="For each operation that is no convolution.")
    convolution_call_ms: float = Field(ge=0, description="For each that is one.")
    convolution_ms: float = Field(ge=0, description="For 10^6 FLOPs of convolutions.")
    matrix_ms: float = Field(ge=0, description="For 10^6 other FLOPs.")
    moved_ms: float = Field(ge=0, description="For 10^6 bytes that are read or written.")


def _measured(value: Any) -> Any:
    """The speed in a file that `fedpress probe --json FILE` wrote, in place of its name."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).expanduser().read_text(encoding="utf-8"))["speed"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError("expected a file that `fedpress probe --json FILE` wrote, or its five rates") from None


class Tier(Section):
    """A class of devices, and what its student may cost, or how much of the model is removed for it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="Letters, digits, - and _.")
    parameters: int | float | None = Field(
        default=None, description="Most parameters: a whole number, or a fraction of the global model's."
    )
    bundle_bytes: int | None = Field(default=None, ge=1, description="Most bytes of the download file.")
    flops: int | None = Field(default=None, ge=1, description="Most operations of one answer to one example.")
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes that weights and activations take at run time, one example at a time.",
    )
    ratio: float | Literal["auto"] | None = Field(
        default=None,
        description="The part of the parameters that is removed, as `prune` says; auto: the largest within its"
        " tolerance.",
    )
    latency_ms: Positive | None = Field(
        default=None, description="Most milliseconds that an answer is predicted to take on `device`."
    )
    device: Annotated[Device | None, BeforeValidator(_measured)] = Field(
        default=None,
        description="For latency_ms: the file that `fedpress probe SCENARIO --json FILE` wrote there, or its rates.",
    )
    student: str = Field(
        default="pruned",
        description="pruned: the global model, every layer made smaller alike; auto: the best that `search` finds; else"
        " an architecture that the task has, such as mlp, made as small and fresh.",
    )
    keep_every: int = Field(
        default=1,
        ge=1,
        description="Of a model's stack of blocks, one of so many is kept; 2: every second layer of a transformer.",
    )
    trains: bool = Field(
        default=False, description="Clients of the tier train its student themselves; needs `teaching`."
    )
    density: Fraction | None = Field(
        default=None,
        description="For trains: share of an update's entries that the tier's clients send; null: the scenario's. The"
        " share that goes down is larger or smaller alike.",
    )
    server_learning_rate: Positive | None = Field(
        default=None, description="For trains: of the tier's server, as small models may want less; null: `server`'s."
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _count_or_fraction(cls, given: Any) -> Any:
        whole, part = type(given) is int and given >= 1, type(given) is float and 0 < given < 1
        if given is not None and not (whole or part):
            raise ValueError("expected a whole number >= 1, or a fraction of the global model's, 0 < fraction < 1")
        return given

    @model_validator(mode="after")
    def _one_budget(self) -> Tier:
        kinds = ("parameters", "bundle_bytes", "flops", "memory_bytes", "latency_ms", "ratio")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one budget out of {', '.join(kinds)}; got {' and '.join(given) or 'none'}")
        if self.student == "auto" and self.keep_every > 1:
            raise ValueError("keep_every has no meaning with student auto, which looks for the depth, too")
        for key in ("density", "server_learning_rate"):
            if not self.trains and getattr(self, key) is not None:
                raise ValueError(f"{key} is for tiers that train: add trains: true, or leave it out")
        if self.trains and (self.student == "auto" or self.keep_every > 1):
            raise ValueError(
                "trains: a tier's clients train one architecture, whole in depth; student auto and keep_every"
                " are for students of the global model"
            )
        if self.ratio is not None and (self.student != "pruned" or self.keep_every > 1 or self.trains):
            raise ValueError("ratio is for the pruned global model alone; for others give a budget")
        if isinstance(self.ratio, float) and not 0 < self.ratio < 1:
            raise ValueError(f"ratio: got {self.ratio:g}, expected a part of the parameters, 0 < ratio < 1, or auto")
        if (self.latency_ms is None) != (self.device is None):
            raise ValueError("latency_ms and device go together; `fedpress probe --json FILE` measures a device")
        return self


class SearchChoice(Section):
    """How a student is looked for where a tier says `student: auto`."""

    candidates: int = Field(default=24, ge=1, description="Architectures that are scored without training.")
    finalists: int = Field(
        default=8, ge=1, description="Those of them that are distilled for a while; validation data choose."
    )
    score: Literal["synflow", "naswot", "gradient_norm", "agreement"] = Field(
        default="synflow", description="What ranks the candidates: synflow, naswot, gradient_norm or agreement."
    )
    spread: float = Field(default=2.0, ge=1, description="How unlike the widths of layers may be; 1: all alike.")
    architectures: tuple[str, ...] = Field(
        default=(), strict=False, description="Of the task, such as mlp, that take part beside the global model."
    )

    @model_validator(mode="after")
    def _fewer_finalists(self) -> SearchChoice:
        if self.finalists > self.candidates:
            raise ValueError(f"finalists: got {self.finalists}, expected at most candidates, {self.candidates}")
        return self


class DataFreeChoice(Section):
    """Inputs made up from the global model, for students of a task without proxy data."""

    recipe: Literal["deep-inversion", "dafl", "dfad"] = Field(
        default="deep-inversion",
        description="deep-inversion: by the statistics of batch norms; dafl, dfad: by a generator, whose inputs the"
        " teacher is sure of, or student and teacher differ on.",
    )
    examples: int = Field(default=1000, ge=1, description="How many inputs are made.")
    steps: int | None = Field(default=None, ge=1, description="Of the optimizer; null: as the recipe has it.")
    low: float = Field(default=0.0, description="The least that an input of the task may be.")
    high: float = Field(default=1.0, description="The most.")

    @model_validator(mode="after")
    def _made(self) -> DataFreeChoice:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self


class ContinuationChoice(Section):
    """Sequences that the global model writes, for students of a task of sequences (Kim & Rush, 2016)."""

    prompt: int = Field(default=32, ge=1, description="Characters of a proxy sequence that are kept.")
    temperature: float = Field(default=1.0, ge=0, description="Of the draw of the next; 0: the likeliest.")
    copies: int = Field(default=1, ge=1, description="How often each is continued.")

    @model_validator(mode="after")
    def _differ(self) -> ContinuationChoice:
        if self.temperature == 0 and self.copies > 1:
            raise ValueError(f"copies: got {self.copies}, but at temperature 0 all are the same; set it to 1")
        return self


Combined = Literal["logits", "probabilities", "entropy", "confidence"]


class PruneChoice(Section):
    """What goes first, and for tiers with a `ratio` how it goes."""

    importance: Literal["l1", "l2", "taylor", "lamp", "random"] = Field(
        default="l2",
        description="l1, l2: magnitude; taylor: magnitude times gradient; lamp: magnitude within its layer; random: the"
        " baseline.",
    )
    ranking: Literal["uniform", "global", "erk"] = Field(
        default="uniform",
        description="uniform: the same part of every layer; global: of all together; erk: Erdős–Rényi, for single"
        " weights.",
    )
    granularity: Literal["channels", "weights", "2:4"] = Field(
        default="channels",
        description="For ratio: channels, with neurons and heads; weights: single ones; 2:4: half of each block of"
        " four.",
    )
    schedule: Literal["one_shot", "iterative", "cubic", "lottery"] = Field(
        default="one_shot",
        description="For ratio: one_shot: at once; iterative: the same part of what is left in each step; cubic: fast"
        " first; lottery: as iterative, but each step trains the weights of before round 1 again.",
    )
    steps: int = Field(default=1, ge=1, description="For ratio: of the schedule.")
    fine_tune_epochs: int = Field(default=5, ge=0, description="For ratio: of training after each step.")
    tolerance: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="For ratio: how much accuracy on validation data a step may cost before it is undone, 0.01 is a"
        " point; null: it is not watched.",
    )
    penalty: Literal["none", "l1", "group_lasso"] = Field(
        default="none",
        description="For ratio: what drives weights (l1) or channels (group_lasso) to zero before; none: nothing.",
    )
    penalty_weight: Positive = Field(default=1e-4, description="Of that term of the loss.")
    penalty_epochs: int = Field(default=5, ge=1, description="Of training with it.")

    @model_validator(mode="after")
    def _fit(self) -> PruneChoice:
        if self.changed("granularity", "ranking", "schedule", "steps", "penalty"):  # what must go together
            self.settings(0.5)
        return self

    def settings(self, ratio: float | str) -> Pruning:
        """Return them with the ratio of a tier. Raises ValueError when they do not go together."""
        from fedpress.compression.models.pruning.schedule import Pruning

        return Pruning(ratio, **self.model_dump())


class LossWeights(Section):
    """How much each part of the loss counts; 0: it is not there."""

    teacher: float = Field(default=1.0, ge=0, description="The teacher's answers (Hinton et al.).")
    labels: float = Field(default=0.5, ge=0, description="Labels, where students may see them.")
    features: float = Field(default=0.0, ge=0, description="The teacher's activations, projected (FitNets).")
    transfer: float = Field(default=0.0, ge=0, description="Where its activations are large (attention transfer).")
    attention: float = Field(default=0.0, ge=0, description="Its attention maps, for transformers.")
    past: float = Field(default=0.0, ge=0, description="The mean of the student's own past (mean teacher).")
    exits: float = Field(default=0.0, ge=0, description="Its own deeper part, through early exits.")

    @model_validator(mode="after")
    def _something_counts(self) -> LossWeights:
        if not any(self.model_dump().values()):
            raise ValueError("weights must be at least 0, and one of them above it; got 0 for all")
        return self


class DistilChoice(Section):
    """How a student learns."""

    epochs: int = Field(default=20, ge=1, description="Passes over the proxy data.")
    learning_rate: Positive = Field(default=0.003, description="The highest of AdamW's.")
    batch_size: int = Field(default=32, ge=1, description="Examples in a step.")
    temperature: Positive = Field(default=2.0, description="Softens the teacher's answers.")
    weights: LossWeights = Field(default=LossWeights(), description="Of the parts of the loss.")
    labeled: int | None = Field(
        default=None, ge=1, description="Of how many examples the label may be seen, with `labels`; null: of all."
    )
    balance: Literal["none", "reweight", "resample"] = Field(
        default="none",
        description="What makes up for classes that are rare in the proxy data: none; reweight: they count more;"
        " resample: they are seen more often.",
    )
    beta: float = Field(default=0.999, ge=0, lt=1, description="Of balance: how much it does.")
    noise: float = Field(default=0.0, ge=0, description="Deviation of what is added to each input.")
    decay: float = Field(default=0.99, gt=0, lt=1, description="Of the mean of the student's past.")

    def settings(self) -> Distillation:
        """Return them."""
        from fedpress.compression.models.distillation.distill import Distillation, Weights

        return Distillation(**{**self.model_dump(), "weights": Weights(**self.weights.model_dump())})


class AssistantChoice(Section):
    """When there are models between teacher and student."""

    factor: float = Field(default=4.0, gt=1, description="How many times smaller a learner may be than its teacher.")
    dense: bool = Field(default=False, description="Each learns from all larger ones, not from the next alone.")


class QuantizeChoice(Section):
    """How the weights of a student are written."""

    bits: int = Field(default=8, ge=2, le=8, description="Of each weight.")
    group: int = Field(default=0, ge=0, description="Weights of a channel that share a scale; 0: all of them.")
    rounding: Literal["nearest", "adaround"] = Field(
        default="nearest", description="nearest; adaround: up or down, as keeps the answers of the layers."
    )
    scale: Literal["largest", "least-squares"] = Field(
        default="largest", description="largest: by the largest weight; least-squares: with the least squared error."
    )
    sparsity: float = Field(default=0.0, ge=0, lt=1, description="Part of the weights that is set to zero first.")
    aware: int = Field(default=0, ge=0, description="Epochs of distillation with the weights rounded.")
    onnx: bool = Field(default=False, description="Put an int8 ONNX file to run into the bundle, too.")

    @model_validator(mode="after")
    def _fit(self) -> QuantizeChoice:
        if self.changed("rounding", "aware"):  # what must go together
            self.settings()
        return self

    def settings(self) -> Quantization:
        """Return them. Raises ValueError when they do not go together."""
        from fedpress.compression.models.quantization.quantize import Quantization

        return Quantization(**self.model_dump())


class FusionChoice(Section):
    """FedDF: after the mean, the global model learns the answers of the round's client models together."""

    every: int = Field(default=1, ge=1, description="Rounds from one distillation to the next, from the first on.")
    combine: Combined = Field(default="logits", description="How the clients' answers become one.")
    epochs: int = Field(default=1, ge=1, description="Passes over the proxy data.")
    learning_rate: Positive = Field(default=0.001, description="Of the distillation.")
    temperature: Positive = Field(default=2.0, description="Of the distillation.")


class Students(Section):
    """The small models that are made from the global one and offered for download."""

    tiers: tuple[Tier, ...] = Field(
        default=(),
        strict=False,
        description="One student each: {name, and what it may cost: parameters, bundle_bytes, flops, memory_bytes, or"
        " latency_ms with device}, and which model it is; with `student: auto` it is searched for.",
    )
    every: int = Field(default=0, ge=0, description="Rounds from one publication to the next; 0: only at the end.")
    prune: PruneChoice = Field(default=PruneChoice(), description="What is removed of the model.")
    distill: DistilChoice = Field(default=DistilChoice(), description="How the students learn.")
    quantize: QuantizeChoice = Field(default=QuantizeChoice(), description="How their weights are written.")
    teachers: Literal["global", "clients"] = Field(
        default="global",
        description="Who teaches: global: the global model; clients: the client models of the last round together"
        " (FedDF).",
    )
    combine: Combined = Field(
        default="logits",
        description="How the answers of several teachers become one: mean of logits or of probabilities, or weighted by"
        " how certain each is.",
    )
    assistants: AssistantChoice | None = Field(
        default=None, description="Models between teacher and student, where it is much smaller; null: none."
    )
    labels: bool = Field(default=False, description="Let the students see the labels of the proxy data.")
    data_free: Annotated[DataFreeChoice | None, BeforeValidator(of_name("recipe"))] = Field(
        default=None, description="Learn on inputs made up from the global model: a recipe's name, or its parts."
    )
    continuations: ContinuationChoice | None = Field(
        default=None, description="Learn on what the global model writes, too; for tasks of sequences."
    )
    search: SearchChoice = Field(default=SearchChoice(), description="For tiers with student auto.")
    signing_key: str | None = Field(
        default=None,
        description="A file of the server's: the Ed25519 private key, PEM, that bundles are signed with; null: none.",
    )
    downloads_per_tier: int = Field(
        default=1, ge=0, description="Clients of each tier that download and check the bundle."
    )

    @field_validator("tiers")
    @classmethod
    def _distinct(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        names = [tier.name for tier in tiers]
        if len(set(names)) < len(names):
            raise ValueError(f"two tiers have the same name, in {names}")
        return tiers

    @model_validator(mode="after")
    def _material(self) -> Students:
        if self.data_free and (self.labels or self.continuations):
            raise ValueError("data_free: made-up inputs have no labels and are no sequences; leave out one of them")
        if self.quantize.onnx and any(tier.bundle_bytes for tier in self.tiers):
            raise ValueError(
                "quantize.onnx: how long an ONNX file gets is not known before, so no tier may have"
                " bundle_bytes; give parameters or flops"
            )
        if self.prune.ranking == "erk" and any(tier.ratio is None for tier in self.tiers):
            raise ValueError("prune.ranking: erk gives densities of single weights, so every tier must have a ratio")
        if self.prune.penalty != "none" and not any(tier.ratio for tier in self.tiers):
            raise ValueError("prune.penalty: is for tiers with a ratio, and there is none")
        if "auto" in [tier.ratio for tier in self.tiers] and self.prune.tolerance is None:
            raise ValueError("prune.tolerance: missing; ratio auto is the largest that costs no more, such as 0.01")
        return self


class Teaching(Section):
    """What tiers that train have of each other: their ensemble teaches the global model, which teaches them.

    Clients belong to the models in turn: the first to the global model if clients train it, then one to each tier.
    """

    global_model: Literal["trained", "distilled"] = Field(
        default="trained",
        description="Who trains the global model: trained: clients, those of no tier that trains; distilled: nobody, it"
        " learns from the tiers' models only.",
    )
    method: Literal["distillation", "slices"] = Field(
        default="distillation",
        description="distillation: of the ensemble, on proxy data (FedDF); slices: each tier's model is a slice of the"
        " global one, and every weight the mean over those who have it (HeteroFL).",
    )
    every: int = Field(
        default=5, ge=0, description="Rounds from one teaching step to the next; 0: never, all learn apart."
    )
    combine: Combined = Field(
        default="logits",
        description="How the ensemble's answers become one: mean of logits or of probabilities, or weighted by how"
        " certain each model is.",
    )
    epochs: int = Field(default=2, ge=1, description="Passes over the proxy data, for each model in each step.")
    learning_rate: Positive = Field(default=0.001, description="Of the distillation.")
    temperature: Positive = Field(default=2.0, description="Of the distillation.")
    density: Fraction = Field(
        default=0.1, description="Share of a model's entries that go down at once with what it was taught."
    )
    levels: int = Field(default=15, ge=1, le=255, description="Steps that each of them may move.")
