"""Settings of pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass

Importance = Literal["l1", "l2", "taylor", "lamp", "random", "wanda"]
"""Measures of importance of a weight or a channel (`importance`)."""
Removal = Literal[Importance, "sparsegpt"]
"""What decides which weights go: a measure, or `sparsegpt`, which also changes the weights that stay."""
Ranking = Literal["uniform", "global", "erk"]
"""Scope within which the least important go first."""
LayerOrder = Literal["influence", "agreement", "spaced", "last", "first", "magnitude"]
"""Which blocks of a model go (`students.depth`)."""


@dataclass(frozen=True, config=STRICT)
class Tracing(Settings):
    """Following of a model's channels, before any are removed.

    Raises:
        ValueError: A value is out of range.
    """

    ignored: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Names of layers whose own channels, or single weights, all stay, and those of their parts; `*`"
        " stands for any text, as in blocks.*.attention.",
    )
    width: Literal["narrow", "keep"] = Field(
        default="narrow",
        json_schema_extra=ADVANCED,
        description="Width of the states that blocks hand on, such as the hidden size of a transformer: narrow: it is"
        " made smaller like all layers; keep: only what lies within one block goes, heads and feed-forward columns.",
    )
    trace_seconds: Positive = Field(
        default=300.0,
        json_schema_extra=ADVANCED,
        description="Longest forward pass of one example while channels are followed, in seconds; a model that takes"
        " longer is refused.",
    )


@dataclass(frozen=True, config=STRICT)
class Pruning(Tracing):
    """Order of removal, and the schedule.

    >>> Pruning(granularity="weights", ranking="erk", schedule="cubic", steps=4).importance
    'l2'
    >>> Pruning(granularity="2:4").check(0.9)
    Traceback (most recent call last):
    ValueError: granularity '2:4' removes half the weights: got removed_fraction 0.9

    For budgets other than `removed_fraction` only importance, ranking, vocabulary and the order of layers are used.

    Raises:
        ValueError: Settings contradict each other, or one is out of range.
    """

    importance: Removal = Field(
        default="l2",
        description="l1, l2: magnitude; taylor: magnitude times gradient; lamp: magnitude within its layer; wanda:"
        " magnitude times the size of its inputs on the proxy data, within each output; sparsegpt: for single weights,"
        " the error of the layer's outputs, which the weights that stay make up for; random: the baseline.",
    )
    ranking: Ranking = Field(
        default="uniform",
        description="uniform: the same part of every layer; global: of all together; erk: Erdős–Rényi, for single"
        " weights.",
    )
    granularity: Literal["channels", "weights", "2:4"] = Field(
        default="channels",
        description="For removed_fraction: channels, neurons and heads (a smaller model); single weights (a sparse"
        " model); 2:4: half of each block of four.",
    )
    schedule: Literal["one_shot", "iterative", "cubic", "lottery"] = Field(
        default="one_shot",
        json_schema_extra=ADVANCED,
        description="For removed_fraction: one_shot: at once; iterative: the same fraction of the rest in each step;"
        " cubic: fast at first; lottery: as iterative, but each step trains from the weights before round 1.",
    )
    steps: int = Field(
        default=1, ge=1, json_schema_extra=ADVANCED, description="For removed_fraction: steps of the schedule."
    )
    fine_tune_epochs: int = Field(
        default=5, ge=0, description="For removed_fraction: passes over the proxy data after each step; 0: none."
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="For removed_fraction: loss of accuracy on validation data beyond which a step is undone, 0.01 is a"
        " point; null: no limit.",
    )
    layer_order: LayerOrder = Field(
        default="influence",
        json_schema_extra=ADVANCED,
        description="For tiers with `layers`, blocks that go: influence: those that change the hidden state least"
        " (ShortGPT); agreement: those least missed in the outputs, one after the other; spaced: evenly between the"
        " first and the last (DistilBERT); last, first; magnitude: those with the smallest weights.",
    )
    vocabulary: Literal["all", "used"] = Field(
        default="all",
        description="Rows of the embedding that tokens are looked up in: all; or those of tokens that occur in the data"
        " students learn on, while any other has the row of the one most like it. Ids and tokenizer stay.",
    )
    unknown_id: int | None = Field(
        default=None,
        ge=0,
        json_schema_extra=ADVANCED,
        description="With `vocabulary: used`: id whose row all others have, such as that of [UNK]; null: each that of"
        " the token most like it.",
    )
    penalty: Literal["none", "l1", "group_lasso"] = Field(
        default="none",
        json_schema_extra=ADVANCED,
        description="For removed_fraction: penalty that drives weights (l1) or channels (group_lasso) to zero before.",
    )
    penalty_weight: Positive = Field(
        default=1e-4, json_schema_extra=ADVANCED, description="Weight of the penalty in the loss."
    )
    penalty_epochs: int = Field(
        default=5, ge=1, json_schema_extra=ADVANCED, description="Passes over the proxy data with the penalty."
    )

    def __post_init__(self) -> None:
        if self.vocabulary == "all" and self.unknown_id is not None:
            raise ValueError(f"unknown_id: got {self.unknown_id}, which only `vocabulary: used` has a use for")
        if self.vocabulary == "used" and self.granularity != "channels":
            raise ValueError(
                f"vocabulary 'used' drops whole rows: granularity must be 'channels', got {self.granularity!r}"
            )
        if self.schedule == "one_shot" and self.steps != 1:
            raise ValueError(f"schedule 'one_shot' has one step, got {self.steps}; 'iterative' has more")
        if self.ranking == "erk" and self.granularity != "weights":
            raise ValueError(
                "ranking 'erk' gives densities of single weights: granularity must be 'weights',"
                f" got {self.granularity!r}"
            )
        if self.schedule == "lottery" and self.granularity != "weights":
            raise ValueError(
                f"schedule 'lottery' rewinds single weights: granularity must be 'weights', got {self.granularity!r}"
            )
        if self.granularity == "2:4" and (self.schedule, self.ranking) != ("one_shot", "uniform"):
            raise ValueError(
                "granularity '2:4' removes half the weights at once, within each block of four: expected schedule"
                f" 'one_shot' and ranking 'uniform', got {self.schedule!r} and {self.ranking!r}"
            )

        if self.importance == "sparsegpt" and (self.granularity == "channels" or self.ranking == "global"):
            raise ValueError(
                "importance 'sparsegpt' removes single weights within each layer: expected granularity 'weights' or"
                f" '2:4', and ranking 'uniform' or 'erk', got {self.granularity!r} and {self.ranking!r}; for channels"
                " see 'wanda'"
            )

    def check(self, removed_fraction: float | Literal["auto"]) -> None:
        """Check that these settings can remove a fraction of the parameters.

        Args:
            removed_fraction: Fraction in (0, 1), or "auto": the largest within `tolerance`.

        Raises:
            ValueError: They cannot.
        """
        if removed_fraction == "auto" and self.tolerance is None:
            raise ValueError(
                "tolerance: missing; removed_fraction auto is the largest that costs no more, such as 0.01"
            )
        if removed_fraction != "auto" and not 0 < removed_fraction < 1:
            raise ValueError(f"removed_fraction is a part of the parameters, in (0, 1), got {removed_fraction}")
        if self.granularity == "2:4" and removed_fraction != 0.5:
            raise ValueError(f"granularity '2:4' removes half the weights: got removed_fraction {removed_fraction}")
