"""The client models of a round as an ensemble that teaches: students, and the global model itself.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
NeurIPS 2020, algorithm 1. What the server knows of a client's model is the held model plus what the client has sent:
with sparse updates that is nearer to the held model than what the client has trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.messages.orders import Download
from fedpress.compression.models.distillation import distill, teachers
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import payloads
from fedpress.server.checkpoint.state import State, as_array
from fedpress.server.fusion.settings import FedDF
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.rounds.orders import Checked

Arrays = Mapping[str, NDArray[Any]]
"""A model's arrays by name."""


class _Sent(NamedTuple):
    """What one client sent, and what it is read with."""

    payload: bytes
    buffers: bytes  # as `buffer_codec.pack` writes them; empty where the model has none
    download: Download | None  # that the client trained from
    version: int  # of the model that it trained from


class ClientModels:
    """The models of the clients whose replies counted last: the held model of then, and what each client sent.

    One model is made at a time, from its payload. A reply that was trained on an older version counts as in the mean:
    its update on top of the held model of now.
    """

    def __init__(self) -> None:
        self._model: GlobalModel | None = None
        self._held: Vector = np.zeros(0, np.float32)
        self._sent: list[_Sent] = []
        self._prediction = 0.0

    def attach(self, model: GlobalModel, prediction: float = 0.0) -> None:
        """Say what the payloads are read with: layout and versions of the global model, and a factor of what is known.

        Args:
            model: The global model.
            prediction: As of `SparseFed`.
        """
        self._model, self._prediction = model, prediction

    def take(self, answers: Sequence[Checked]) -> None:
        """Forget the clients of before and take these; between their replies and the model's step."""
        model = self._attached
        self._held = model.versions.held.floats(model.layout) if model.versions else model.master.copy()
        self._sent = [
            _Sent(answer.payload, answer.buffers, answer.download, model.version - answer.staleness)
            for answer in answers
        ]

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Make one model after the other: its arrays by name, buffers among them."""
        model = self._attached
        layout, versions = model.layout, model.versions
        for sent in self._sent:
            reference = versions.support(sent.download) if versions else None
            total = self._held.astype(np.float64)
            payloads.decode(sent.payload, SideInfo(layout, reference=reference)).add_to(total, 1.0)
            predictor = versions.predictor(sent.download, sent.version) if versions and self._prediction else None
            if predictor is not None:
                predictor.add_to(total, self._prediction)
            buffers = buffer_codec.unpack(sent.buffers, layout) if layout.buffers else {}
            yield {**flatten.unflatten(total.astype(np.float32), layout), **buffers}

    def teacher(self, model: nn.Module, combine: teachers.Combine = "logits") -> teachers.Ensemble:
        """Return the clients as a teacher; `model` is of their architecture, and copied."""
        own = copy.deepcopy(model).cpu()

        def models() -> Iterator[nn.Module]:
            for arrays in self:
                yield filled(own, arrays)

        return teachers.Ensemble(models, combine)

    def saved(self) -> State:
        """Return the held model and what each client sent."""
        arrays: dict[str, NDArray[Any]] = {"held": self._held}
        meta = []
        for number, sent in enumerate(self._sent):
            delta = sent.download.delta if sent.download else b""
            parts = {"payload": sent.payload, "buffers": sent.buffers, "delta": delta}
            arrays |= {f"{number}/{name}": as_array(data) for name, data in parts.items()}
            meta.append({"version": sent.version, "base": sent.download.base if sent.download else None})
        return State(arrays, {"sent": meta})

    def restore(self, state: State) -> None:
        """Take up what `saved` returned."""
        self._held = state.arrays["held"]
        self._sent = []
        for number, meta in enumerate(state.meta["sent"]):
            payload, buffers, delta = (state.arrays[f"{number}/{n}"].tobytes() for n in ("payload", "buffers", "delta"))
            self._sent.append(_Sent(payload, buffers, Download(b"", meta["base"], delta), meta["version"]))

    @property
    def _attached(self) -> GlobalModel:
        if self._model is None:
            raise RuntimeError("ClientModels has no global model yet; give it to a SparseFed, which attaches its own")
        return self._model


@dataclass(frozen=True)
class Fusion:
    """FedDF: after each mean, the global model learns the answers of the ensemble of the round's client models.

    Attributes:
        model: Of the global model's architecture, with any weights.
        inputs: Proxy data (N, ...).
        settings: When, and how it learns.
        seed: Draws the order of the inputs, anew for each round.

    Raises:
        ValueError: There are no inputs.
    """

    model: nn.Module
    inputs: Tensor
    settings: FedDF = FedDF()
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.inputs) == 0:
            raise ValueError("fusion needs proxy data, got 0 inputs: does the task hold out a proxy part?")

    def due(self, server_round: int) -> bool:
        """Whether there is a distillation in a round."""
        return (server_round - 1) % self.settings.every == 0

    def fused(self, arrays: Arrays, clients: ClientModels, server_round: int) -> dict[str, NDArray[Any]]:
        """Return the global model's arrays after the distillation; `arrays` are those of the mean."""
        learned = distill.distill(
            clients.teacher(self.model, self.settings.combine),
            filled(copy.deepcopy(self.model), arrays),
            self.inputs,
            self.settings.distillation,
            seed=seeds.derive("fusion", self.seed, server_round),
        )
        return {name: tensor.numpy() for name, tensor in learned.state_dict().items()}


def filled(model: nn.Module, arrays: Arrays) -> nn.Module:
    """Copy arrays into the model's own of those names, in place, and return it."""
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    return model
