"""Work on the global model of a scenario: data, model, encoder, training, network.

Server and clients derive the same from the same scenario; expensive parts are made once in a process.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Mapping
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedpress.client.settings import Training
from fedpress.client.state.bases import BaseMissing, Bases
from fedpress.compression import safetensors_files, seeds
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.errors import BaseError, FedpressError
from fedpress.compression.files import private_folder, write_atomically
from fedpress.compression.models import computed, trainable
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples, Task
from fedpress.compression.tensors.layout import Layout
from fedpress.simulations.conditions import faults
from fedpress.simulations.conditions.network import Network
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import initial_weights
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.tasks import fingerprint, registry
from fedpress.simulations.tasks.partition import partition

FINGERPRINT = "data"
"""Entry of the file with the partition: the fingerprint of the data that its indices are of."""


class OtherData(FedpressError):
    """This process has other examples than the server."""


class Workload:
    """Work on one model (`fedpress.client.app.Work`), for its clients and for the server.

    Args:
        scenario: The scenario.
        out: Path of the run folder; None: no folder.
        own_data: Whether the task's data are those of this one client, and not partitioned.
        bases: Pretrained bases that this device was sent; None: those of this user.

    Attributes:
        federation: Name of the federation.
    """

    def __init__(
        self, scenario: Scenario, out: Path | None = None, *, own_data: bool = False, bases: Bases | None = None
    ) -> None:
        self.scenario = scenario
        self.out = out
        self.own_data = own_data
        self.bases = bases or Bases()
        self.federation = f"{scenario.name}-{scenario.seed}"

    @cached_property
    def task(self) -> Task:
        """Model, loss and data."""
        return self.another_task()

    def another_task(self) -> Task:
        """Return another instance of the task, as each worker process makes one."""
        choice = self.scenario.task
        return registry.create(choice.name, choice.options, choice.folder)

    @cached_property
    def _model(self) -> nn.Module:
        """Version 0: the task's model as made under the scenario's seed, with the weights of `base` and `init`."""
        model, file, base = self._made, self.scenario.init, self.scenario.base
        if file is not None or base is not None:
            model = copy.deepcopy(model)
        self.fill_from_base(model)
        if file is not None:
            initial_weights.load(model, Path(file))
        initial_weights.check(model, self.task.name)
        return model

    def fill_from_base(self, model: nn.Module) -> None:
        """Copy the pretrained weights of `base`, if there are any, into a model.

        Args:
            model: An instance of the task's model; changed in place.

        Raises:
            InitialWeightsError: They do not fit.
            BaseMissing: This device has no copy of them.
            BaseError: They have another hash than the scenario says.
        """
        base = self.scenario.base
        if base is None:
            return
        if base.path is not None and Path(base.path).exists():
            initial_weights.load_base(model, Path(base.path), base.sha256)
            return
        text = (
            "base: this device has no copy of the federation's pretrained weights; name its place by `base` in the"
            f" settings of `fedpress client`{f' (SHA-256 {base.sha256})' if base.sha256 else ''}"
        )
        if base.sha256 is None:
            raise initial_weights.InitialWeightsError(text)
        sent = self.bases.find(base.sha256)
        if sent is not None and safetensors_files.sha256(sent) != base.sha256:  # the disk has damaged it since
            self.bases.discard(base.sha256)
            sent = None
        if sent is None:
            raise BaseMissing(text, base.sha256, self.bases)
        initial_weights.load_base(model, sent, base.sha256)

    @property
    def base(self) -> Path | None:
        """Pretrained weights of `base` on this device, its own or those that it was sent; None: there are none."""
        base = self.scenario.base
        if base is None:
            return None
        if base.path is not None and Path(base.path).exists():
            return Path(base.path)
        return self.bases.find(base.sha256) if base.sha256 else None

    @cached_property
    def _made(self) -> nn.Module:
        """The task's model, on the server and on clients under the same seed."""
        return self.made_under("model")

    def made_under(self, purpose: str) -> nn.Module:
        """Return the task's model, its weights made under the seed of a purpose, and what is not trained frozen.

        Raises:
            TrainableError: A pattern of `trainable` matches nothing.
        """
        with reproducible(seeds.derive(self.federation, self.scenario.seed, purpose)):
            model = self.task.model()
            computed.detach(model)
            return self.freeze(model)

    def freeze(self, model: nn.Module) -> nn.Module:
        """Return a model of the task after freezing what `trainable` does not name; null: as it is."""
        if self.scenario.trainable is not None:
            trainable.select(model, self.scenario.trainable)
        return model

    @property
    def _seed(self) -> int:
        return seeds.derive(self.federation, self.scenario.seed, "model")

    def fresh_model(self) -> nn.Module:
        """Return a copy of the initial model.

        Raises:
            InitialWeightsError: The file of `init` or `base` does not fit the model, or the model cannot be trained as
                it is.
            BaseError: `base` has another hash than the scenario says.
        """
        return copy.deepcopy(self._model)

    def blank_model(self) -> nn.Module:
        """Return a new instance of the model, with any weights."""
        return copy.deepcopy(self._made)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the initial model, which nobody changes."""
        return list(self._model.parameters())

    def initial_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the initial model by name, which nobody changes; the same mapping at every call.

        Raises:
            InitialWeightsError, BaseError: As of `fresh_model`.
        """
        return self._initial

    def initial(self) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of the initial model by name, as a client makes it; None: it cannot, the log says why.

        The same mapping at every call.

        Raises:
            BaseError: This client's copy of `base` has another hash than the server's.
        """
        try:
            return self._initial
        except BaseError:
            raise
        except (FedpressError, ImportError) as error:
            getLogger("flwr").warning("this client has no initial weights by itself, and asks for the model: %s", error)
            return None

    @cached_property
    def _initial(self) -> dict[str, NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self._model.state_dict().items()}

    @cached_property
    def layout(self) -> Layout:
        """Layout of the model."""
        return Layout.of(self._made)

    @cached_property
    def encoder(self) -> Encoder[Any]:
        """Encoder of the updates."""
        return self.scenario.encoder.build(self.density, self.prediction)

    @property
    def density(self) -> float:
        """Share of an update's entries that a client sends."""
        return self.scenario.density

    @property
    def server_learning_rate(self) -> float:
        """Learning rate of the server's optimizer."""
        return self.scenario.server.learning_rate

    @property
    def prediction(self) -> float:
        """Ratio of an update to a step of the model, by which CAFe predicts updates; 0: no prediction.

        Constant updates make steps of learning_rate / (1 - momentum) times the update.
        """
        server = self.scenario.server
        return (1 - server.momentum) / server.learning_rate if self.scenario.encoder.feedback == "cafe" else 0.0

    @property
    def training(self) -> Training:
        """Settings of the clients' training."""
        return self.scenario.training

    @property
    def rounds(self) -> int:
        """Number of rounds of the run."""
        return self.scenario.rounds

    @cached_property
    def faults(self) -> faults.Faults | None:
        """Injected faults; None: none."""
        choice = self.scenario.faults
        return faults.Faults(choice, self.scenario.seed) if choice else None

    @cached_property
    def parts(self) -> list[NDArray[np.int64]]:
        """Index array of each client into the training split, drawn from the seed."""
        settings = self.scenario.partition
        return partition(
            self.task.data().train.targets.numpy(),
            self.scenario.clients,
            settings,
            groups=self.task.groups() if settings.kind == "natural" else None,
            seed=seeds.derive(self.scenario.seed, "partition"),
        )

    def part(self, client: int) -> NDArray[np.int64]:
        """Return the index array of one client; from the run folder if the server has written it there."""
        return self.parts[client] if self._saved_parts is None else self._saved_parts[f"client-{client}"]

    @cached_property
    def _saved_parts(self) -> Mapping[str, NDArray[np.int64]] | None:
        shared = RunFolder(self.out).partition if self.out else None
        if shared is None or not shared.exists():
            return None
        # Of thousands of arrays a worker needs few, so each is unpacked on access. From memory: processes that are
        # forked from this one would share the position in an open file.
        parts = cast(Mapping[str, NDArray[np.int64]], np.load(io.BytesIO(shared.read_bytes()), allow_pickle=False))
        if str(parts[FINGERPRINT]) != fingerprint.of(self.task.data()):
            raise OtherData(
                f"the examples of task {self.task.name!r} are not those that the server has: data() must return the"
                " same in every process; seed what it draws, and go by no hash() or set, whose order differs"
            )
        return parts

    def save_parts(self, folder: RunFolder) -> None:
        """Write the partition into the run folder, where workers read it instead of drawing it again."""
        data = io.BytesIO()
        named: dict[str, Any] = {FINGERPRINT: np.array(fingerprint.of(self.task.data()))}
        named |= {f"client-{client}": part for client, part in enumerate(self.parts)}
        np.savez_compressed(data, **named)
        write_atomically(folder.partition, data.getvalue())

    @property
    def tier(self) -> str:
        """Name of the tier whose model this is; empty: the global model."""
        return ""

    def examples(self, client: int) -> Examples:
        """Return the client's own training examples."""
        train = self.task.data().train
        return train if self.own_data else train.take(self.part(client))

    def examples_a_round(self, client: int) -> int:
        """Return the number of examples that a client trains on in a round, counted as often as it sees them."""
        return self.training.examples_seen(len(self.part(client)))

    def downloads(self, client: int) -> Path:
        """Return the folder where the client keeps downloaded students: of the run, or else of this user alone."""
        folder = RunFolder(self.out).downloads if self.out else private_folder() / re.sub(r"\W", "-", self.federation)
        return folder / f"client-{client}"

    @cached_property
    def network(self) -> Network | None:
        """Links and speeds of the clients; None: time stands still.

        Raises:
            TraceError: The trace cannot be used.
        """
        choice, scenario = self.scenario.network, self.scenario
        return Network(choice, seed=scenario.seed, clients=scenario.clients) if choice else None
