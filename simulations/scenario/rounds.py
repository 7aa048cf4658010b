"""The sections of a scenario on its task and rounds that are no settings of the library as they are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization
from fedpress.compression.settings import ADVANCED, STRICT, Field, Fraction, dataclass
from fedpress.server.rounds.closing import Closing, Staleness
from fedpress.server.strategies.buffered import Buffered
from fedpress.simulations.scenario.section import Section
from fedpress.simulations.tasks import registry


class TaskChoice(Section):
    """Model, data and loss. Keys besides these two are options of the task, such as `data_dir` of fashion-mnist."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="A built-in task (digits, fashion-mnist, text) or your own class as 'module:Class'.")
    folder: str | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Where the module of your own class is looked for; by default beside the scenario file.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        registry.check_name(name)
        return name

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the task's class."""
        return dict(self.model_extra or {})


@dataclass(frozen=True, config=STRICT)
class Sampling(Closing, Staleness):
    """Who takes part in a round, and when the round closes."""

    schedule: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="synchronous: all clients of a round train from the same model; buffered: FedBuff, clients work all"
        " the time, and the model steps once clients_per_round replies are in. buffered needs network.",
    )
    clients_per_round: int = Field(default=10, ge=1, description="Clients whose replies a round waits for.")
    concurrency: int | None = Field(default=None, ge=1, description="For buffered: clients at work at any time.")

    @property
    def buffer(self) -> Buffered | None:
        """When the server steps with the schedule buffered; None: rounds are synchronous."""
        if self.schedule == "synchronous":
            return None
        return Buffered(
            self.clients_per_round, staleness_exponent=self.staleness_exponent, max_staleness=self.max_staleness
        )


class Sparsity(Section):
    """Which weights the model in training has; clients train, send and get those only."""

    method: Literal["snip", "grasp", "synflow", "erk", "magnitude", "gradual", "feddst", "rigl"] = Field(
        default="snip",
        description="snip, grasp, synflow, erk (at random) or magnitude: a mask before round 1 that stays; gradual:"
        " pruned by magnitude as training goes; feddst, rigl: the mask moves, clients vote on it.",
    )
    density: Fraction = Field(
        default=0.1, description="Share of the weights that is left; biases and the like all are."
    )
    scope: Literal["global", "layer", "erk"] | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Who competes: all weights, those of a layer (each with the same density), or those of a layer with"
        " ERK densities. null: erk for erk, feddst and rigl, layer for gradual, else global.",
    )
    initial_method: Literal["snip", "grasp", "synflow", "erk", "magnitude"] = Field(
        default="erk", json_schema_extra=ADVANCED, description="For feddst and rigl: how their first mask is made."
    )
    begin: int = Field(
        default=0,
        json_schema_extra=ADVANCED,
        ge=0,
        description="For gradual: round in which its cubic schedule starts.",
    )
    end: int | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        ge=1,
        description="For gradual: round after which the density is reached; for feddst and rigl: round from which"
        " on the mask stays. null: two thirds of the rounds.",
    )
    every: int = Field(default=5, ge=1, description="For gradual, feddst and rigl: rounds from one change to the next.")
    drop_fraction: Fraction = Field(
        default=0.3,
        json_schema_extra=ADVANCED,
        description="For feddst and rigl: share of a layer's weights that is exchanged, at first; falls by a cosine.",
    )

    @property
    def initial(self) -> AtInitialization | None:
        """How the first mask is made; None: all weights are there at first."""
        if self.method == "gradual":
            return None
        moving = self.method in ("feddst", "rigl")
        method: Any = self.initial_method if moving else self.method
        scope = self.scope or ("erk" if moving else None)
        return AtInitialization(method, self.density, scope)

    @property
    def changes(self) -> bool:
        """Whether the mask changes during the rounds."""
        return self.method in ("gradual", "feddst", "rigl")

    @model_validator(mode="after")
    def _used(self) -> Sparsity:
        takes = {"gradual": {"begin", "end", "every"}}
        own = takes.get(self.method, {"initial_method", "end", "every", "drop_fraction"} if self.changes else set())
        for key in ("initial_method", "begin", "end", "every", "drop_fraction"):
            if key not in own and self.changed(key):
                raise ValueError(f"{key} has no meaning for method {self.method}")
        _ = self.initial  # refuses what does not go together
        return self


class Evaluation(Section):
    """When and on what the server evaluates the model that clients hold. Round 1 and the last 10 always are."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    split: Literal["test", "validation", "proxy"] = Field(
        default="test",
        description="test: for what is reported; validation: for whatever is chosen by it, such as a learning rate;"
        " proxy: the same on the larger part that students are distilled on, for runs without students.",
    )
