"""Settings of local training."""

from __future__ import annotations

from typing import Literal

from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass

_RATES = {"sgd": 0.1, "adamw": 0.001, "muon": 0.001}
_MOMENTA = {"sgd": 0.0, "muon": 0.95}


@dataclass(frozen=True, config=STRICT)
class Training(Settings):
    """Local training in PyTorch.

    AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (ICLR). Muon: Jordan et al. 2024, "Muon:
    An optimizer for hidden layers in neural networks", its rate scaled as in Liu et al. 2025, "Muon is Scalable for LLM
    Training", section 2.2. FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (MLSys),
    section 3: the term mu/2 * |w - start|^2. bfloat16: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
    Training". float16: Micikevicius et al. 2018, "Mixed Precision Training" (ICLR). Gradient checkpointing: Chen et al.
    2016, "Training Deep Nets with Sublinear Memory Cost".

    Raises:
        ValueError: Both epochs and steps are given, a value belongs to another optimizer, or one is out of range.
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
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=ADVANCED,
        description="Examples in a forward and backward pass: a batch is taken in such pieces, and their gradients are"
        " accumulated, each with its share of the targets. Less memory, the same step, but for batch normalization,"
        " which sees each piece alone. null: the whole batch.",
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        default="sgd",
        description="Local optimizer. Transformers need adamw or muon. muon: hidden matrices and filters by Muon, and"
        " what is left (embeddings, first and last layers, biases, norms) by AdamW.",
    )
    learning_rate: Positive | None = Field(
        default=None,
        description="Local learning rate; null: 0.1 for sgd, 0.001 for adamw and muon. One rate serves Muon and the"
        " AdamW beside it.",
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="Local momentum of sgd and muon; null: 0 for sgd, 0.95 for muon."
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, json_schema_extra=ADVANCED, description="AdamW's decay of the mean of gradients."
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, json_schema_extra=ADVANCED, description="AdamW's decay of the mean of squares."
    )
    epsilon: Positive = Field(
        default=1e-8, json_schema_extra=ADVANCED, description="AdamW's addend to the root of the mean of squares."
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Weight decay of the local steps: with sgd an L2 penalty, with adamw and muon decoupled from the"
        " gradient.",
    )
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        json_schema_extra=ADVANCED,
        description="Moments of the optimizer in a client's next round: reset: from zero, and nothing is stored; keep:"
        " in the client's state, 1 (momentum) or 2 (AdamW) times the trained part.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        json_schema_extra=ADVANCED,
        description="Course of the learning rate from the end of the warm-up to the end of the last round, down to"
        " zero: it goes by the round, and by the share of the round's local steps.",
    )
    warmup_rounds: float = Field(
        default=0.0, ge=0, json_schema_extra=ADVANCED, description="First rounds of the run, in which the rate rises."
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="First local steps of every round, in which the rate rises: for moments that begin from zero.",
    )
    max_grad_norm: Positive | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Largest norm of the gradient over all trained parameters, beyond which it is scaled down; null: no"
        " clipping. It bounds a local step, not what is sent (`encoder.clip_norm`).",
    )
    proximal_mu: float = Field(
        default=0.0, ge=0, description="FedProx's mu: pulls toward the weights that training started from."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        json_schema_extra=ADVANCED,
        description="Of the local forward and backward pass (autocast): bfloat16 is faster on recent processors,"
        " float16 on GPUs without it, with a scaled loss. Weights, gradients and the optimizer stay float32.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        json_schema_extra=ADVANCED,
        description="Compute the inside of each block again in the backward pass, instead of keeping it: the same"
        " gradients with less memory, and a third more time.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where clients train and models are evaluated: cpu or cuda."
    )

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps: give one and set the other to null")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(f"momentum: got {self.momentum}, but adamw has beta1 in its place; set momentum to null")
        if self.optimizer == "sgd" and self.changed("beta1", "beta2", "epsilon"):
            raise ValueError("beta1, beta2 and epsilon: belong to adamw, and the optimizer is sgd; leave them out")

    @property
    def rate(self) -> float:
        """Learning rate without its schedule."""
        return _RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def velocity_decay(self) -> float:
        """Momentum of SGD or Muon."""
        return _MOMENTA.get(self.optimizer, 0.0) if self.momentum is None else self.momentum

    @property
    def moments(self) -> int:
        """Numbers that the optimizer has for each trained one, at most (Muon has one for hidden matrices)."""
        return 2 if self.optimizer != "sgd" else int(self.velocity_decay > 0)

    def examples_seen(self, count: int) -> int:
        """Return how many examples a client with `count` of them trains on, each counted as often as it is seen."""
        return self.steps * self.batch_size if self.steps is not None else (self.epochs or 1) * count
