"""Settings of local training."""

from __future__ import annotations

from typing import Literal

from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass


@dataclass(frozen=True, config=STRICT)
class Training(Settings):
    """Local training: SGD in PyTorch.

    FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (MLSys), section 3: the term
    mu/2 * |w - start|^2. bfloat16: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training".

    Raises:
        ValueError: Both epochs and steps are given, or a value is out of range.
    """

    epochs: int | None = Field(
        default=None, ge=1, description="Local passes over the client's examples; 1 without steps."
    )
    steps: int | None = Field(default=None, ge=1, description="Local steps, in place of epochs.")
    batch_size: int = Field(
        default=32,
        ge=1,
        description="Examples in a step; the last batch of an epoch may have fewer. With batch normalization a last one"
        " of a single example joins the one before.",
    )
    learning_rate: Positive = Field(default=0.1, description="Local learning rate.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Local momentum; starts from zero in every round.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty of the local steps.")
    proximal_mu: float = Field(
        default=0.0, ge=0, description="FedProx's mu: pulls toward the weights that training started from."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        json_schema_extra=ADVANCED,
        description="Of the local forward and backward pass; bfloat16 is faster on recent processors (autocast), and"
        " weights, gradients and the optimizer stay float32.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where clients train and models are evaluated: cpu or cuda."
    )

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps: give one and set the other to null")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)

    def examples_seen(self, count: int) -> int:
        """Return how many examples a client with `count` of them trains on, each counted as often as it is seen."""
        return self.steps * self.batch_size if self.steps is not None else (self.epochs or 1) * count
