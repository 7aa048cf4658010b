"""How a student learns, and what it learns on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator

from fedpress.compression import suggest
from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass, fields

Combine = Literal["logits", "probabilities", "entropy", "confidence"]
"""How the answers of an ensemble of teachers become one (`teachers`)."""


@dataclass(frozen=True, config=STRICT)
class LossWeights(Settings):
    """How much each part of the loss counts; 0: it is not there.

    Raises:
        ValueError: All are 0, or one is below.
    """

    teacher: float = Field(default=1.0, ge=0, description="The teacher's answers (Hinton et al.).")
    labels: float = Field(default=0.5, ge=0, description="Labels, where students may see them.")
    features: float = Field(
        default=0.0, ge=0, json_schema_extra=ADVANCED, description="The teacher's activations, projected (FitNets)."
    )
    attention_transfer: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Where the teacher's activations are large (attention transfer).",
    )
    attention: float = Field(
        default=0.0, ge=0, json_schema_extra=ADVANCED, description="The teacher's attention maps, for transformers."
    )
    mean_teacher: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="The mean of the student's own past weights (mean teacher).",
    )
    early_exits: float = Field(
        default=0.0, ge=0, json_schema_extra=ADVANCED, description="The student's own deeper part, by early exits."
    )

    def __post_init__(self) -> None:
        if not (self.labels or self.learns_without_labels):
            raise ValueError("weights must be at least 0, and one of them above it; got 0 for all")

    @property
    def learns_without_labels(self) -> bool:
        """Whether another part than that of the labels counts."""
        return any(getattr(self, name) for name in fields(LossWeights) if name != "labels")


@dataclass(frozen=True, config=STRICT)
class Distillation(Settings):
    """How a student learns a teacher's answers.

    The defaults are where the optimum is flat (docs/results/students.md); the table there is printed by
    `python -m fedpress.simulations.studies.distillation fashion-mnist`.
    """

    epochs: int = Field(default=20, ge=1, description="Passes over the proxy data.")
    learning_rate: Positive = Field(
        default=0.003,
        description="The highest of AdamW's; it rises over the first tenth of the steps and falls to 0 by a cosine.",
    )
    batch_size: int = Field(default=32, ge=1, description="Examples in a step.")
    temperature: Positive = Field(default=2.0, description="Softens the answers of teacher and student; 1 leaves them.")
    weights: LossWeights = Field(
        default=LossWeights(), json_schema_extra=ADVANCED, description="Of the parts of the loss."
    )
    labeled: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=ADVANCED,
        description="Of how many examples the label may be seen, with `labels`, the same number of each class; null: of"
        " all.",
    )
    balance: Literal["none", "reweight", "resample"] = Field(
        default="none",
        description="What makes up for classes that are rare in the proxy data: none; reweight: they count more;"
        " resample: they are seen more often.",
    )
    beta: float = Field(
        default=0.999, ge=0, lt=1, json_schema_extra=ADVANCED, description="For balance: how much it does."
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Standard deviation of what is added to each input of the student, in the inputs' units.",
    )
    decay: float = Field(
        default=0.99,
        gt=0,
        lt=1,
        json_schema_extra=ADVANCED,
        description="For weights.mean_teacher: of the mean, for a step; lower in the first steps.",
    )


@dataclass(frozen=True, config=STRICT)
class Assistants(Settings):
    """Models between teacher and student, where it is much smaller."""

    factor: float = Field(default=4.0, gt=1, description="How many times smaller a learner may be than its teacher.")
    dense: bool = Field(default=False, description="Each learns from all larger ones, not from the next alone.")


@dataclass(frozen=True, config=STRICT)
class DataFree(Settings):
    """How inputs are made from the global model alone, for a task without proxy data: what is optimized, and for what.

    The sum of the weighted terms of `data_free` is made small by Adam.

    Raises:
        ValueError: Settings do not go together, or one is out of range.
    """

    optimize: Literal["inputs", "generator"] = Field(
        default="inputs", description="The inputs themselves, each batch for all steps, or a generator of them."
    )
    examples: int = Field(default=1000, ge=1, description="How many inputs are made.")
    steps: int = Field(default=200, ge=1, description="Of Adam.")
    batch_size: int = Field(
        default=100, ge=2, json_schema_extra=ADVANCED, description="Inputs in a step; one alone has no variance."
    )
    learning_rate: Positive = Field(
        default=0.1, json_schema_extra=ADVANCED, description="Of Adam; it falls to 0 by a cosine."
    )
    low: float = Field(default=0.0, description="The least that an input of the task may be.")
    high: float = Field(default=1.0, description="The most.")
    certainty: float = Field(
        default=1.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the teacher's cross-entropy with the class asked for (inputs) or with its own first"
        " choice (generator).",
    )
    statistics: float = Field(
        default=1.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the distance from the batch norms' statistics.",
    )
    variation: float = Field(
        default=0.1,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the mean absolute difference of neighboring pixels, as a part of the range.",
    )
    balance: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the negative entropy of the mean answer.",
    )
    activation: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the negative mean magnitude of what goes into the last linear layer.",
    )
    disagreement: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the negative L1 distance of the student's logits from the teacher's.",
    )

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}: the range of the task's inputs")
        terms = ("certainty", "statistics", "variation", "balance", "activation", "disagreement")
        if not any(getattr(self, name) for name in terms):
            raise ValueError(f"one of the weights {', '.join(terms)} must be above 0, got 0 for all")


_GENERATOR = DataFree(optimize="generator", learning_rate=3e-3, steps=500, statistics=0.0, variation=0.0)
RECIPES: Final[Mapping[str, DataFree]] = {
    "deep-inversion": DataFree(),
    "dafl": replace(_GENERATOR, balance=5.0, activation=0.1),
    "dfad": replace(_GENERATOR, certainty=0.0, disagreement=1.0),
}
"""The papers' own sums, by name: [1], [2], [3] of `data_free`."""


def from_recipe(value: Any) -> Any:
    """Complete the settings of a file: a recipe's name, or {recipe, and what differs}; deep-inversion without one.

    >>> from_recipe({"recipe": "dafl", "steps": 7})["steps"], from_recipe("dafl")["steps"]
    (7, 500)

    Args:
        value: A name, a section, or anything else, which is handed back.

    Raises:
        ValueError: There is no such recipe.
    """
    given = {"recipe": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        return value
    recipe, others = given.get("recipe", "deep-inversion"), {key: given[key] for key in given if key != "recipe"}
    if recipe not in RECIPES:
        raise ValueError(f"recipe: got {recipe!r}, expected {suggest.choices(RECIPES, str(recipe))}")
    return asdict(RECIPES[recipe]) | others


@dataclass(frozen=True, config=STRICT)
class Continuations(Settings):
    """Sequences that the global model writes, for students of a task of sequences (Kim & Rush, 2016)."""

    prompt: int = Field(default=32, ge=1, description="Characters of a proxy sequence that are kept.")
    temperature: float = Field(default=1.0, ge=0, description="Of the draw of the next character; 0: the likeliest.")
    copies: int = Field(default=1, ge=1, description="How often each sequence is continued.")

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.copies > 1:
            raise ValueError(f"copies: got {self.copies}, but at temperature 0 all are the same; set it to 1")


@dataclass(frozen=True, config=STRICT)
class LearningData(Settings):
    """What students learn on: the task's proxy data, more than that, or something in its place."""

    labels: bool = Field(default=False, description="Let the students see the labels of the proxy data.")
    data_free: Annotated[DataFree | None, BeforeValidator(from_recipe)] = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Inputs made from the global model, in place of proxy data: deep-inversion, by the statistics of"
        " batch norms; dafl or dfad, by a generator, whose inputs the teacher is sure of, or student and teacher differ"
        " on; or {recipe, and what differs}; null: proxy data.",
    )
    continuations: Continuations | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Learn on what the global model writes, too; for tasks of sequences.",
    )

    def __post_init__(self) -> None:
        if self.data_free and (self.labels or self.continuations):
            raise ValueError("data_free: inputs made from a model have no labels and are no sequences; leave out one")
