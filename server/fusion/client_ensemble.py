"""Client models of a round as an ensemble that teaches students, and the global model itself.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
NeurIPS 2020, algorithm 1. The server's estimate of a client's model is the held model plus the client's update: with
sparse updates that is nearer to the held model than the model that the client has trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.messages.orders import Download
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation import distill, teachers
from fedpress.compression.models.distillation.settings import Combine
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Vector
from fedpress.compression.wire import payloads
from fedpress.server.fusion.settings import FedDF
from fedpress.server.model.global_model import GlobalModel

Arrays = Mapping[str, NDArray[Any]]
"""A model's arrays by name."""


class SentUpdate(NamedTuple):
    """Update as a client sent it, and what its decoding needs."""

    payload: bytes
    buffers: bytes  # as `buffer_codec.pack` writes them; empty where the model has none
    download: Download | None  # that the client trained from
    version: int  # of the model that it trained from
    node: int = 0  # that sent it


@dataclass
class LastUpdates:
    """The held model before the last step, float32 (n,), and the updates that counted in it."""

    held: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    sent: list[SentUpdate] = field(default_factory=list)


class ClientModels:
    """Models of the clients whose replies counted in the last step: the held model plus each client's update.

    One model is made at a time, from its payload. A reply that was trained on an older version counts as in the mean:
    its update is added to the newest held model.
    """

    def __init__(self) -> None:
        self._model: GlobalModel | None = None
        self._last = LastUpdates()
        self._prediction = 0.0

    def attach(self, model: GlobalModel, prediction: float = 0.0) -> None:
        """Set the model whose layout and versions the decoding of payloads needs.

        Args:
            model: The global model.
            prediction: Factor of the predicted part of an update, as in its `Downlink`.
        """
        self._model, self._prediction = model, prediction

    def take(self, sent: Sequence[SentUpdate]) -> None:
        """Replace the updates by those of a new step, before the model takes it."""
        model = self._attached
        held = model.versions.held.floats(model.layout) if model.versions else model.master.copy()
        self._last = LastUpdates(held, list(sent))

    def __len__(self) -> int:
        return len(self._last.sent)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield one model after the other: its arrays by name, buffers among them."""
        model = self._attached
        layout = model.layout
        for sent in self._last.sent:
            side_info = model.side_info(sent.download, sent.version)
            total = self._last.held.astype(np.float64)
            payloads.decode(sent.payload, side_info).add_to(total, 1.0)
            if side_info.predictor is not None:
                side_info.predictor.add_to(total, self._prediction)
            buffers = buffer_codec.unpack(sent.buffers, layout, None) if layout.buffers else {}
            yield {**flatten.unflatten(total.astype(np.float32), layout), **buffers, **model.frozen}

    def teacher(
        self, model: nn.Module, combine: Combine = "logits", class_axis: int = teachers.LAST
    ) -> teachers.Ensemble:
        """Return the client models as a teacher.

        Args:
            model: Instance of their architecture, which is copied.
            combine: Rule by which their answers become one.
            class_axis: Axis of their outputs along which the classes are.
        """
        shell = copy.deepcopy(model).cpu()

        def models() -> Iterator[nn.Module]:
            for arrays in self:
                yield filled(shell, arrays)

        return teachers.Ensemble(
            models,
            combine,
            name_of=lambda number: f"the model of node {self._nodes[number]}",
            class_axis=class_axis,
        )

    def state(self) -> LastUpdates:
        """Return the held model and the updates."""
        return self._last

    def entry(self) -> None:
        """Return nothing: the last step is taken again, and brings its client models."""

    def release(self) -> None:
        """Give back the memory of the updates."""
        self._last = LastUpdates()

    def restore(self, state: LastUpdates) -> None:
        """Take up a state."""
        self._last = state

    @property
    def _nodes(self) -> list[int]:
        return [sent.node for sent in self._last.sent]

    @property
    def _attached(self) -> GlobalModel:
        if self._model is None:
            raise RuntimeError("ClientModels has no global model yet; give it to a SparseFed, which attaches its own")
        return self._model


@dataclass(frozen=True)
class Fusion:
    """FedDF: after each mean, the global model is distilled from the ensemble of the round's client models.

    Attributes:
        model: Instance of the global model's architecture, with any weights.
        inputs: Proxy data (N, ...).
        settings: Rounds and settings of the distillation.
        seed: Seed of the order of the inputs, which is drawn anew for each round.
        class_axis: Axis of the models' outputs along which the classes are.

    Raises:
        ValueError: There are no inputs.
    """

    model: nn.Module
    inputs: Inputs
    settings: FedDF = FedDF()
    seed: int = 0
    class_axis: int = teachers.LAST

    def __post_init__(self) -> None:
        if model_inputs.count(self.inputs) == 0:
            raise ValueError("fusion needs proxy data, got 0 inputs: does the task hold out a proxy part?")

    def due(self, server_round: int) -> bool:
        """Return whether a round ends with a distillation."""
        return (server_round - 1) % self.settings.every == 0

    def fused(self, arrays: Arrays, clients: ClientModels, server_round: int) -> dict[str, NDArray[Any]]:
        """Return the global model's arrays after the distillation.

        Args:
            arrays: The global model after the mean, by name.
            clients: The client models of the round.
            server_round: Number of the round.
        """
        learned = distill.distill(
            clients.teacher(self.model, self.settings.combine, self.class_axis),
            filled(copy.deepcopy(self.model), arrays),
            self.inputs,
            self.settings.distillation,
            class_axis=self.class_axis,
            seed=seeds.derive("fusion", self.seed, server_round),
        )
        return {name: tensor.numpy() for name, tensor in learned.state_dict().items()}


def filled(model: nn.Module, arrays: Arrays) -> nn.Module:
    """Copy arrays into a model, in place, and return it.

    Args:
        model: The model.
        arrays: Its arrays by name.
    """
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    return model
