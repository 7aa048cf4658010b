"""Sections `task`, `base`, `sampling` and `evaluation` of a scenario."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, field_validator

from fedpress.compression.settings import ADVANCED, STRICT, Field, dataclass
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.closing import Closing, Staleness
from fedpress.simulations.scenario.section import Section
from fedpress.simulations.tasks import registry


class TaskChoice(Section):
    """Model, data and loss. Keys besides these two are options of the task, such as `data_dir` of fashion-mnist."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        description="A built-in task (digits, fashion-mnist, text, verses) or your own class as 'module:Class'."
    )
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
        """Keyword arguments of the task's class."""
        return dict(self.model_extra or {})


class BaseChoice(Section):
    """Pretrained weights that participants have: agreed by their hash, and sent once to a device without a copy.

    What the task's model has of them is filled from them; parameters with requires_grad=False stay as they are there.
    """

    path: str | None = Field(
        default=None,
        description="A safetensors file, or a folder of them with Hugging Face's names; a device says where its own"
        " copy is (`base` in its settings).",
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-fA-F]{64}$",
        description="What `sha256sum` gives for the file, and `sha256sum *.safetensors | sha256sum` in a folder of"
        " several; null: that of the server's copy.",
    )


@dataclass(frozen=True, config=STRICT)
class SamplingSettings(Closing, Staleness):
    """Sampling of clients, and the end of a round."""

    schedule: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="synchronous: all clients of a round train from the same model; buffered: FedBuff, clients work all"
        " the time, and the model steps once clients_per_round replies are in. buffered needs network.",
    )
    clients_per_round: int = Field(default=10, ge=1, description="Clients whose replies a round waits for.")
    concurrency: int | None = Field(default=None, ge=1, description="For buffered: clients at work at any time.")

    @property
    def buffer(self) -> Buffered | None:
        """Buffer of the schedule buffered; None: rounds are synchronous."""
        if self.schedule == "synchronous":
            return None
        return Buffered(
            self.clients_per_round, staleness_exponent=self.staleness_exponent, max_staleness=self.max_staleness
        )


class EvaluationSettings(Section):
    """When and on what the server evaluates the model that clients hold. Round 1 and the last 10 always are."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    split: Literal["test", "validation", "proxy"] = Field(
        default="test",
        description="test: for what is reported; validation: for whatever is chosen by it, such as a learning rate;"
        " proxy: the same on the larger part that students are distilled on, for runs without students.",
    )
