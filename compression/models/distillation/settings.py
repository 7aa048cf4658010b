"""Settings of distillation: the loss, the training, assistants, and the data that students learn on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator

from fedpress.compression import suggest
from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass, fields

Combine = Literal["logits", "probabilities", "entropy", "confidence"]
"""Combinations of the answers of an ensemble of teachers (`teachers`)."""
Divergence = Literal["kl", "mse", "cosine"]
"""Distances of a student's answers from its teacher's."""


@dataclass(frozen=True, config=STRICT)
class LossWeights(Settings):
    """Weights of the parts of the loss; 0: the part is left out.

    Raises:
        ValueError: All are 0, or one is negative.
    """

    teacher: float = Field(default=1.0, ge=0, description="The teacher's answers (Hinton et al.).")
    labels: float = Field(default=0.5, ge=0, description="Labels, where students may see them.")
    features: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="The teacher's activations, projected (FitNets); of transformers, the states after each layer"
        " (TinyBERT).",
    )
    attention_transfer: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Spatial maps of the teacher's squared activations (attention transfer).",
    )
    attention: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="The teacher's attention maps, for transformers of any library.",
    )
    mean_teacher: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="The mean of the student's own past weights (mean teacher).",
    )
    early_exits: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Early exits, taught by the student's own final classifier.",
    )

    def __post_init__(self) -> None:
        if not (self.labels or self.learns_without_labels):
            raise ValueError("weights must be at least 0, and one of them above it; got 0 for all")

    @property
    def learns_without_labels(self) -> bool:
        """Whether a part other than that of the labels has a weight above 0."""
        return any(getattr(self, name) for name in fields(LossWeights) if name != "labels")


@dataclass(frozen=True, config=STRICT)
class Distillation(Settings):
    """Training of a student on a teacher's answers.

    The defaults lie where the optimum is flat (docs/results/students.md); the table there is printed by
    `python -m fedpress.simulations.studies.distillation fashion-mnist`.
    """

    epochs: int = Field(default=20, ge=1, description="Passes over the proxy data.")
    learning_rate: Positive = Field(
        default=0.003,
        description="Highest learning rate of AdamW; linear warm-up over the first tenth of the steps, cosine decay.",
    )
    batch_size: int = Field(default=32, ge=1, description="Examples in a step.")
    temperature: Positive = Field(default=2.0, description="Softens the answers of teacher and student; 1 leaves them.")
    divergence: Divergence = Field(
        default="kl",
        json_schema_extra=ADVANCED,
        description="Distance from the teacher's answers: kl: of softened probabilities; for answers that are numbers"
        " or embeddings: mse: squared; cosine: 1 - the cosine.",
    )
    weights: LossWeights = Field(
        default=LossWeights(), json_schema_extra=ADVANCED, description="Weights of the parts of the loss."
    )
    labeled: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=ADVANCED,
        description="With `labels`: number of examples whose labels are visible, balanced over classes; null: all.",
    )
    balance: Literal["none", "reweight", "resample"] = Field(
        default="none",
        description="Balance of classes that are rare in the proxy data: none; reweight: they have more weight;"
        " resample: they are drawn more often.",
    )
    beta: float = Field(default=0.999, ge=0, lt=1, json_schema_extra=ADVANCED, description="For balance: its strength.")
    noise: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Standard deviation of Gaussian noise added to the student's inputs, in their units.",
    )
    decay: float = Field(
        default=0.99,
        gt=0,
        lt=1,
        json_schema_extra=ADVANCED,
        description="For weights.mean_teacher: decay of the moving average in a step; lower in the first steps.",
    )


@dataclass(frozen=True, config=STRICT)
class Assistants(Settings):
    """Teacher assistants: models of intermediate size, where the student is much smaller than its teacher."""

    factor: float = Field(
        default=4.0, gt=1, description="Largest ratio of parameters between a teacher and its student."
    )
    dense: bool = Field(default=False, description="Each learns from all larger ones, not from the next alone.")


@dataclass(frozen=True, config=STRICT)
class DataFree(Settings):
    """Synthesis of inputs from the global model, for a task without proxy data (`data_free`).

    Adam minimizes the weighted sum of the terms.

    Raises:
        ValueError: Settings contradict each other, or one is out of range.
    """

    optimize: Literal["inputs", "generator"] = Field(
        default="inputs", description="The inputs themselves, each batch for all steps, or a generator of them."
    )
    examples: int = Field(default=1000, ge=1, description="Number of inputs to make.")
    steps: int = Field(default=200, ge=1, description="Steps of Adam.")
    batch_size: int = Field(
        default=100, ge=2, json_schema_extra=ADVANCED, description="Inputs in a step; one alone has no variance."
    )
    learning_rate: Positive = Field(
        default=0.1, json_schema_extra=ADVANCED, description="Initial learning rate of Adam, with cosine decay."
    )
    low: float = Field(default=0.0, description="Least value of the task's inputs.")
    high: float = Field(default=1.0, description="Largest value of the task's inputs.")
    certainty: float = Field(
        default=1.0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Weight of the teacher's cross-entropy with a given class (inputs) or with its own prediction"
        " (generator).",
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
        description="Weight of the mean absolute difference of neighboring pixels, as a fraction of the range.",
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
        description="Weight of the negative mean magnitude of the last linear layer's inputs.",
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
"""Objectives of the papers [1], [2], [3] of `data_free`, by name."""


def from_recipe(value: Any) -> Any:
    """Complete settings from a file: the name of a recipe, or {recipe, and what differs}; deep-inversion by default.

    >>> from_recipe({"recipe": "dafl", "steps": 7})["steps"], from_recipe("dafl")["steps"]
    (7, 500)

    Args:
        value: A name, a section, or anything else, which is returned as it is.

    Raises:
        ValueError: The recipe is unknown.
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
    """Sequences that the global model continues, for students of a task of sequences (Kim & Rush, 2016)."""

    prompt: int = Field(default=32, ge=1, description="Characters kept of each proxy sequence.")
    temperature: float = Field(default=1.0, ge=0, description="Temperature of sampling; 0: the likeliest character.")
    copies: int = Field(default=1, ge=1, description="Continuations of each sequence.")

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.copies > 1:
            raise ValueError(f"copies: got {self.copies}, but at temperature 0 all are the same; set it to 1")


@dataclass(frozen=True, config=STRICT)
class LearningData(Settings):
    """Data that students learn on: the task's proxy data, additions to it, or a replacement."""

    labels: bool = Field(default=False, description="Let the students see the labels of the proxy data.")
    data_free: Annotated[DataFree | None, BeforeValidator(from_recipe)] = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Inputs made from the global model in place of proxy data: deep-inversion matches the statistics of"
        " batch norms; dafl and dfad train a generator of inputs of which the teacher is certain, or on which"
        " student and teacher differ; or {recipe, and what differs}; null: proxy data.",
    )
    continuations: Continuations | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Also learn on sequences that the global model continues; for tasks of sequences.",
    )

    def __post_init__(self) -> None:
        if self.data_free and (self.labels or self.continuations):
            raise ValueError("data_free: inputs made from a model have no labels and are no sequences; leave out one")
