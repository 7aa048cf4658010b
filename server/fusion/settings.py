"""How models of a round teach: client models the global one, and tiers each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedpress.compression.models.distillation.settings import Combine, Distillation
from fedpress.compression.settings import ADVANCED, STRICT, Field, Fraction, Positive, Settings, dataclass

if TYPE_CHECKING:
    from fedpress.server.model.versions import Downlink


@dataclass(frozen=True, config=STRICT)
class EnsembleDistillation(Settings):
    """Distillation on the server, from an ensemble whose answers become one."""

    combine: Combine = Field(
        default="logits",
        description="How the ensemble's answers become one: mean of logits or of probabilities, or weighted by how"
        " certain each model is (entropy, confidence).",
    )
    learning_rate: Positive = Field(default=0.001, description="Of the distillation.")
    temperature: Positive = Field(default=2.0, json_schema_extra=ADVANCED, description="Of the distillation.")

    def distillation_of(self, epochs: int) -> Distillation:
        """Return how a model learns in so many passes over the proxy data."""
        return Distillation(epochs=epochs, learning_rate=self.learning_rate, temperature=self.temperature)


@dataclass(frozen=True, config=STRICT)
class FedDF(EnsembleDistillation):
    """After the mean, the global model learns the answers of the round's client models together (`client_ensemble`)."""

    every: int = Field(default=1, ge=1, description="Rounds from one distillation to the next, from the first on.")
    epochs: int = Field(default=1, ge=1, description="Passes over the proxy data.")

    @property
    def distillation(self) -> Distillation:
        """How the global model learns."""
        return self.distillation_of(self.epochs)


@dataclass(frozen=True, config=STRICT)
class Teaching(EnsembleDistillation):
    """What tiers that train have of each other: their ensemble teaches the global model, which teaches them.

    Clients belong to the models in turn: the first to the global model if clients train it, then one to each tier.
    """

    epochs: int = Field(default=2, ge=1, description="Passes over the proxy data, for each model in each step.")
    every: int = Field(
        default=5, ge=0, description="Rounds from one teaching step to the next; 0: never, all learn apart."
    )
    global_model: Literal["trained", "distilled"] = Field(
        default="trained",
        description="Who trains the global model: trained: clients, those of no tier that trains; distilled: nobody, it"
        " learns from the tiers' models only.",
    )
    method: Literal["distillation", "heterofl"] = Field(
        default="distillation",
        json_schema_extra=ADVANCED,
        description="distillation: of the ensemble, on proxy data (FedDF); heterofl: each tier's model is a slice of"
        " the global one, and every weight the mean over those who have it.",
    )
    density: Fraction = Field(
        default=0.1,
        json_schema_extra=ADVANCED,
        description="Share of a model's entries that go down at once with what it was taught.",
    )
    levels: int = Field(
        default=15, ge=1, le=255, json_schema_extra=ADVANCED, description="Steps that each of them may move."
    )

    @property
    def distillation(self) -> Distillation:
        """How each model learns in each step."""
        return self.distillation_of(self.epochs)

    @property
    def downlink(self) -> Downlink:
        """How much of what a model was taught goes down at once."""
        from fedpress.server.model.versions import Downlink

        return Downlink(density=self.density, levels=self.levels)
