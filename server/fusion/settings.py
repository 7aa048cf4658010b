"""Settings of distillation on the server: from client models to the global one, and between tiers."""

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
        """Return the settings of a distillation of this number of passes over the proxy data."""
        return Distillation(epochs=epochs, learning_rate=self.learning_rate, temperature=self.temperature)


@dataclass(frozen=True, config=STRICT)
class FedDF(EnsembleDistillation):
    """Distillation of the global model from the round's client models, after the mean (`client_ensemble`)."""

    every: int = Field(default=1, ge=1, description="Rounds from one distillation to the next, from the first on.")
    epochs: int = Field(default=1, ge=1, description="Passes over the proxy data.")

    @property
    def distillation(self) -> Distillation:
        """Settings of one distillation."""
        return self.distillation_of(self.epochs)


@dataclass(frozen=True, config=STRICT)
class Teaching(EnsembleDistillation):
    """Exchange between tiers that train: their ensemble teaches the global model, which teaches them.

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
        """Settings of each model's distillation in each step."""
        return self.distillation_of(self.epochs)

    @property
    def downlink(self) -> Downlink:
        """Density and levels of the version that follows a distillation."""
        from fedpress.server.model.versions import Downlink

        return Downlink(density=self.density, levels=self.levels)
