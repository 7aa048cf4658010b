"""Section `encoder` of a scenario, and the encoder that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import field_validator, model_validator

from fedpress.compression import suggest
from fedpress.compression.encoders import (
    cafe,
    encoder,
    error_feedback,
    float16_residual,
    recipes,
    selection,
    wrappers,
)
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.settings import ADVANCED, Field, Fraction, Positive
from fedpress.compression.wire import values
from fedpress.simulations.scenario.section import Section

NAMES_OF_PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "fedpress": {},
    "stc": {"values": "ternary", "feedback": "residual"},
    "random_k": {"kind": "random_k", "values": "float32", "feedback": "residual"},
    "fp16": {"kind": "dense", "values": "float16", "feedback": "none"},
    "int8": {"kind": "dense", "values": "int8", "feedback": "none"},
}
"""Published methods that are a combination of kind, values and feedback, by name."""
RECIPES: Final = {name: recipe for name, recipe in recipes.RECIPES.items() if name not in NAMES_OF_PARTS}
"""Published methods with parts of their own."""


class EncoderSettings(Section):
    """Encoder of updates: its parts, or a recipe. The share of entries sent is the top-level `density`."""

    recipe: str | None = Field(
        default=None,
        description="A published method in place of kind, scope, values and feedback:"
        f" {', '.join(RECIPES)}. A name of parts stands for these, and may be changed by others:"
        f" {', '.join(NAMES_OF_PARTS)}.",
    )
    bits: int | None = Field(default=None, description="For the recipes qsgd (2 to 8) and eden (1 to 4).")
    rank: int | None = Field(default=None, description="For the recipe powersgd.")
    kind: Literal["top_k", "random_k", "dense"] = Field(
        default="top_k",
        description="top_k: the largest entries; random_k: random ones; dense: everything, as FedAvg does.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global",
        json_schema_extra=ADVANCED,
        description="top_k over the whole model, or in every tensor by itself.",
    )
    values: str = Field(default="step", description=f"Number format of the entries sent: {', '.join(values.names())}.")
    feedback: Literal["none", "residual", "step_ahead", "cafe"] = Field(
        default="step_ahead",
        description="What happens to the entries not sent: none: lost; residual: added to the next update (error"
        " feedback); step_ahead: besides, training starts from the model plus what is kept back (SA-PEF); cafe: lost,"
        " but what is sent is the difference from how the model moved lately (CAFe). Needs downlink and optimizer sgd.",
    )
    residual_dtype: Literal["float32", "float16"] = Field(
        default="float32",
        json_schema_extra=ADVANCED,
        description="How a client keeps what it keeps back: float16 takes half the disk; what its rounding drops is"
        " counted.",
    )
    clip_norm: Positive | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Largest L2 norm of an update; longer ones are scaled down.",
    )
    warm_up_rounds: int = Field(
        default=0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="Rounds in which the density falls to its value (DGC).",
    )
    warm_up_density: Fraction = Field(
        default=0.25, json_schema_extra=ADVANCED, description="Density in the first round of the warm-up."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_of_parts(cls, given: Any) -> Any:
        name = given.get("recipe") if isinstance(given, dict) else None
        if not isinstance(name, str) or name not in NAMES_OF_PARTS:
            return given
        return {**NAMES_OF_PARTS[name], **{key: value for key, value in given.items() if key != "recipe"}}

    @field_validator("values")
    @classmethod
    def _format(cls, name: str) -> str:
        if name not in values.names():
            raise ValueError(f"expected {suggest.choices(values.names(), name)}")
        return name

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in RECIPES:
            raise ValueError(f"expected {suggest.choices([*NAMES_OF_PARTS, *RECIPES], name)}")
        return name

    @model_validator(mode="after")
    def _of_the_recipe(self) -> EncoderSettings:
        takes = RECIPES[self.recipe].takes if self.recipe else ()
        for key in ("bits", "rank"):
            if getattr(self, key) is not None and key not in takes:
                taking = [name for name, recipe in RECIPES.items() if key in recipe.takes]
                raise ValueError(f"{key} is for the recipes {', '.join(taking)}; recipe is {self.recipe or 'null'}")
        if self.residual_dtype != "float32" and self.feedback in ("none", "cafe"):
            raise ValueError(
                f"residual_dtype {self.residual_dtype} has no meaning with feedback {self.feedback}: nothing is kept"
                " back"
            )
        if self.recipe is None:
            return self
        for key in ("kind", "scope", "values", "feedback", "residual_dtype"):
            if self.changed(key):
                raise ValueError(f"{key} has no meaning beside recipe {self.recipe}, which rules it; leave one out")
        if self.warm_up_rounds and "density" not in takes:
            raise ValueError(f"warm_up_rounds has no meaning for recipe {self.recipe}, which has no density")
        self._unwarmed(1.0, 0.0)  # refuses bits or a rank out of range
        return self

    def build(self, density: float, prediction: float = 0.0) -> Encoder[Any]:
        """Return the encoder.

        Args:
            density: Share of the entries that is sent, 0 < density <= 1.
            prediction: For feedback cafe: ratio of an update to a step of the model that clients hold.
        """

        def at(density: float) -> Encoder[Any]:
            return self._unwarmed(density, prediction)

        built = at(density)
        if self.warm_up_rounds:
            built = wrappers.warmed_up(at, self.warm_up_density, density, self.warm_up_rounds)
        return wrappers.clipped(built, self.clip_norm) if self.clip_norm else built

    def _unwarmed(self, density: float, prediction: float) -> Encoder[Any]:
        if self.recipe is not None:
            recipe, options = RECIPES[self.recipe], {"density": density, "bits": self.bits, "rank": self.rank}
            return recipe.make(**{key: options[key] for key in recipe.takes if options[key] is not None})
        number_format = values.by_name(self.values)
        if self.kind == "dense":
            built: Encoder[Any] = encoder.dense(number_format)
        elif self.kind == "random_k":
            built = encoder.seeded(density, number_format)
        else:
            built = encoder.sparse(selection.top_k(density, scope=self.scope), number_format)
        if self.feedback == "none":
            return built
        if self.feedback == "cafe":
            return cafe.aggregate_feedback(built, prediction)
        built = error_feedback.error_feedback(built)
        if self.feedback == "step_ahead":
            built = error_feedback.step_ahead(built)
        return float16_residual.half_precision(built) if self.residual_dtype == "float16" else built
