"""Section `students` of a scenario: tiers of devices, and the steps that make their students.

It embeds the library's settings of pruning, distillation, quantization and search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedpress.compression import suggest
from fedpress.compression.models.distillation.settings import Assistants, Combine, Distillation, LearningData
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students.settings import Budget, Inherit, Search, blocks, inherits
from fedpress.compression.settings import ADVANCED, STRICT, Fraction, Positive, Settings, dataclass
from fedpress.simulations.scenario.section import Section

RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "small": {
        "tiers": [{"name": "student", "parameters": 0.083}],
        "distill": {"epochs": 40},
        "quantize": {"bits": 4, "scale": "least-squares"},
    },
    "accurate": {
        "tiers": [{"name": "student", "parameters": 1.0}],
        "quantize": {"bits": 4, "scale": "least-squares", "sparsity": 0.92, "qat_epochs": 20},
    },
    "auto": {
        "tiers": [{"name": "student", "removed_fraction": "auto"}],
        "prune": {"granularity": "weights", "tolerance": 0.02},
    },
    "transformer": {
        "tiers": [{"name": "student", "layers": 0.5, "parameters": 1.0}],
        "prune": {"vocabulary": "used", "width": "keep", "importance": "wanda"},
        "distill": {"epochs": 3, "learning_rate": 0.0002},
        "quantize": {"bits": 4, "group_size": 64, "rounding": "gptq", "scale": "least-squares"},
    },
}
"""Settings of students by name; docs/results/students.md has their measured size and accuracy."""

ADAPTER: Final = "adapter"
"""Student of a tier whose bundle holds what was trained alone, and names the base."""

STEPS: Final = ("prune", "distill", "quantize")
"""Built-in steps, whose settings are keys of the section."""


@dataclass(frozen=True, config=STRICT)
class Named(Settings):
    """Settings with a name that files and folders can have."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="Letters, digits, - and _.")


@dataclass(frozen=True, config=STRICT)
class Tier(Budget, Named):
    """Tier of devices, and the budget of its student."""

    student: str = Field(
        default="pruned",
        description="pruned: the global model, every layer made smaller alike; auto: the best that `search` finds;"
        " adapter: the part of the global model that is trained, for devices that have `base`, with parameters: 1.0;"
        " else an architecture that the task has, such as mlp, made as small and fresh.",
    )
    layers: Annotated[int | float | None, BeforeValidator(blocks)] = Field(
        default=None,
        description="Blocks kept of each stack of the model: a number, or a fraction of them; 0.5: half the layers of a"
        " transformer. They go before the rest is pruned to the budget, as `prune.layer_order` says; null: all.",
    )
    inherit: Annotated[Inherit | None, BeforeValidator(inherits)] = Field(
        default=None,
        description="Weights that another architecture takes over from the global model: by-name: those of the same"
        " names and shapes; every-second: likewise, of longer lists of layers evenly spaced ones; or names of the"
        " student with the global model's, such as {layers.0: encoder.layer.0}, with * for any text; null: none.",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student == ADAPTER and (self.parameters != 1.0 or self.layers is not None or self.trains):
            raise ValueError(
                "student adapter is the global model as it was trained, of which devices have the rest: parameters: 1.0"
                " and no layers, trains or other budget; a smaller one is made of the whole model (student: pruned)"
            )
        if self.student == "auto" and self.layers is not None:
            raise ValueError("layers has no meaning with student auto, which looks for the depth, too")
        if self.inherit is not None and (self.student in ("pruned", "auto", ADAPTER) or self.trains):
            raise ValueError(
                "inherit is for a student of another architecture that learns from the global model; the pruned model"
                " has its weights anyway, and what clients train begins by itself"
            )
        for key in ("density", "server_learning_rate"):
            if not self.trains and getattr(self, key) is not None:
                raise ValueError(f"{key} is for tiers that train: add trains: true, or leave it out")
        if self.trains and (self.student == "auto" or self.layers is not None):
            raise ValueError(
                "trains: a tier's clients train one architecture, whole in depth; student auto and layers"
                " are for students of the global model"
            )
        if self.removed_fraction is not None and (self.student != "pruned" or self.layers or self.trains):
            raise ValueError("removed_fraction is for the pruned global model alone; for others give a budget")


class OwnStep(Section):
    """Custom step. Keys besides these two are its options."""

    model_config = ConfigDict(extra="allow")

    step: str = Field(description="A class or function, as 'module:attribute'.")
    folder: str | None = Field(
        default=None, description="Where the module is looked for; by default beside the scenario file."
    )

    @field_validator("step")
    @classmethod
    def _reference(cls, step: str) -> str:
        module, colon, attribute = step.partition(":")
        if not (colon and attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))):
            raise ValueError(f"got {step!r}, expected 'module:attribute'")
        return step

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the step's class."""
        return dict(self.model_extra or {})


def _as_step(value: Any) -> Any:
    if not isinstance(value, str | dict) or value in STEPS:
        return value
    if isinstance(value, str) and ":" not in value:
        raise ValueError(f"expected {suggest.choices(STEPS, value)}; or a step of your own as 'module:attribute'")
    try:
        return OwnStep.model_validate({"step": value} if isinstance(value, str) else value)
    except ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None


def from_recipe(value: Any) -> Any:
    """Complete a section of a file by the settings of its recipe; keys in the file take precedence.

    >>> from_recipe({"recipe": "small", "quantize": {"bits": 3}})["quantize"]
    {'bits': 3, 'scale': 'least-squares'}

    Args:
        value: Name of a recipe, a section, or anything else, which is returned.
    """
    section = {"recipe": value} if isinstance(value, str) else value
    if not isinstance(section, dict) or section.get("recipe") not in RECIPES:
        return section
    complete = dict(section)
    for key, part in RECIPES[section["recipe"]].items():
        if isinstance(part, dict) and isinstance(section.get(key), dict):
            complete[key] = part | section[key]
        else:
            complete.setdefault(key, part)
    return complete


class Students(Section):
    """Small models that are made from the global one and offered for download."""

    recipe: Literal["small", "accurate", "auto", "transformer"] | None = Field(
        default=None,
        description="small: 8.3 % of the parameters, 4 bits each: a file about 100 times smaller; accurate: the whole"
        " architecture with 92 % zeros, about 45 times smaller, which loses least; auto: as few weights as cost 2"
        " points of accuracy; transformer: for a pretrained one: the rows of its tokens that occur, half its layers,"
        " distilled in a few passes, 4 bits by GPTQ. Keys beside it count instead.",
    )
    tiers: Annotated[tuple[Tier, ...], Field(strict=False)] = Field(
        default=(),
        description="One student each: {name, and what it may cost: parameters, bundle_bytes, flops, memory_bytes, or"
        " latency_ms with device}, and which model it is; with `student: auto` it is searched for.",
    )
    every: int = Field(default=0, ge=0, description="Rounds from one publication to the next; 0: only at the end.")
    steps: Annotated[tuple[Annotated[str | OwnStep, BeforeValidator(_as_step)], ...], Field(strict=False)] = Field(
        default=STEPS,
        json_schema_extra=ADVANCED,
        description="How students are made: prune, distill, quantize in any order, and steps of your own among them, as"
        " 'module:attribute' or {step, and its options}. Students that clients have trained take those after distill.",
    )
    prune: Pruning = Field(default=Pruning(), description="What is removed of the model.")
    distill: Distillation = Field(default=Distillation(), description="How the students learn.")
    quantize: Quantization = Field(default=Quantization(), description="How their weights are written.")
    teachers: Literal["global", "clients"] = Field(
        default="global",
        json_schema_extra=ADVANCED,
        description="Who teaches: global: the global model; clients: the client models of the last round together"
        " (FedDF).",
    )
    combine: Combine = Field(
        default="logits",
        json_schema_extra=ADVANCED,
        description="How the answers of several teachers become one: mean of logits or of probabilities, or weighted by"
        " how certain each is (entropy, confidence).",
    )
    assistants: Assistants | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Models between teacher and student, where it is much smaller; null: none.",
    )
    data: LearningData = Field(default=LearningData(), description="What they learn on.")
    search: Search = Field(default=Search(), json_schema_extra=ADVANCED, description="For tiers with student auto.")
    signing_key: str | None = Field(
        default=None,
        description="A file of the server's: the Ed25519 private key, PEM, that bundles are signed with; null: none.",
    )
    downloads_per_tier: int = Field(
        default=1,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Clients of each tier that download and check the bundle.",
    )

    @field_validator("tiers")
    @classmethod
    def _distinct(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        names = [tier.name for tier in tiers]
        if len(set(names)) < len(names):
            raise ValueError(f"two tiers have the same name, in {names}")
        return tiers

    @field_validator("steps")
    @classmethod
    def _quantized_once(cls, steps: tuple[str | OwnStep, ...]) -> tuple[str | OwnStep, ...]:
        if steps.count("quantize") != 1:
            raise ValueError("expected quantize once: a bundle holds quantized weights")
        return steps

    @model_validator(mode="after")
    def _together(self) -> Students:
        if self.quantize.onnx and any(tier.bundle_bytes for tier in self.tiers):
            raise ValueError(
                "quantize.onnx: how long an ONNX file gets is not known before, so no tier may have"
                " bundle_bytes; give parameters or flops"
            )
        if any(tier.student == ADAPTER for tier in self.tiers) and (self.quantize.sparsity or self.quantize.qat_epochs):
            raise ValueError(
                "quantize: sparsity and qat_epochs change the weights that devices with a tier of student adapter have"
                " already; leave them at 0"
            )
        if self.prune.ranking == "erk" and any(tier.removed_fraction is None for tier in self.tiers):
            raise ValueError(
                "prune.ranking: erk gives densities of single weights, so every tier must have a removed_fraction"
            )
        if self.prune.importance == "sparsegpt" and any(tier.removed_fraction is None for tier in self.tiers):
            raise ValueError(
                "prune.importance: sparsegpt removes single weights, so every tier must have a removed_fraction; for"
                " channels see wanda"
            )
        if self.prune.penalty != "none" and not any(tier.removed_fraction for tier in self.tiers):
            raise ValueError("prune.penalty: is for tiers with a removed_fraction, and there is none")
        for tier in self.tiers:
            if tier.removed_fraction is not None:
                try:
                    self.prune.check(tier.removed_fraction)
                except ValueError as error:
                    raise ValueError(f"prune: {error}") from None
        return self

    @property
    def finishing(self) -> tuple[str | OwnStep, ...]:
        """Steps of a student that clients have trained: those after distill, or from quantize on."""
        return self.steps[
            self.steps.index("distill") + 1 if "distill" in self.steps else self.steps.index("quantize") :
        ]
