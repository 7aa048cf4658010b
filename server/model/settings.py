"""Settings of the server's optimizer and of the compression of the download."""

from __future__ import annotations

from typing import Final, Literal

from fedpress.compression.settings import ADVANCED, STRICT, Field, Fraction, Positive, Settings, dataclass

MIN_EPSILON: Final = 1e-3
"""Below it, coordinates that are rarely sent explode (Reddi et al. 2021, section 5)."""


@dataclass(frozen=True, config=STRICT)
class DownlinkSettings(Settings):
    """Compression of the download: clients hold the model, and get what has changed since their last round."""

    density: Fraction = Field(default=0.005, description="Share of the model's entries that one round changes.")
    levels: int = Field(
        default=1,
        ge=1,
        le=255,
        json_schema_extra=ADVANCED,
        description="Steps that an entry may move in a round; 1: all move as far (ternary).",
    )


@dataclass(frozen=True, config=STRICT)
class OptimizerSettings(Settings):
    """The server's step along the mean update (Reddi et al., "Adaptive Federated Optimization", 2021).

    Raises:
        ValueError: A value is out of range, or of another optimizer.
    """

    optimizer: Literal["sgd", "adam", "yogi", "adagrad", "majority_vote"] = Field(
        default="sgd",
        description="Rule of the step: sgd, adam, yogi, adagrad; majority_vote for the encoder signsgd, every weight"
        " moves by the learning rate.",
    )
    learning_rate: Positive = Field(default=1.0, description="Server learning rate; 1 with sgd is FedAvg.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="For sgd.")
    beta1: float = Field(
        default=0.9, ge=0, lt=1, json_schema_extra=ADVANCED, description="For adam and yogi: decay of the first moment."
    )
    beta2: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        json_schema_extra=ADVANCED,
        description="For adam and yogi: decay of the second moment.",
    )
    epsilon: float = Field(
        default=MIN_EPSILON,
        ge=MIN_EPSILON,
        json_schema_extra=ADVANCED,
        description="For adam, yogi and adagrad: keeps coordinates that nobody sends from exploding.",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the mean of the models of all rounds, which is then what is evaluated and published; 0.9:"
        " of about ten rounds; 0: the newest model.",
    )

    def __post_init__(self) -> None:
        takes: dict[str, set[str]] = {"sgd": {"momentum"}, "adagrad": {"epsilon"}, "majority_vote": set()}
        taken = takes.get(self.optimizer, {"beta1", "beta2", "epsilon"})
        for key in ("momentum", "beta1", "beta2", "epsilon"):
            if key not in taken and self.changed(key):
                raise ValueError(f"{key} has no meaning for optimizer {self.optimizer}, which takes {sorted(taken)}")
