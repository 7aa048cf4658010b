"""Step of a model from a round's updates, and the same step once more from a journal."""

from collections.abc import Callable, Sequence
from logging import ERROR, WARNING
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord
from flwr.supercore import log

from fedpress.compression.errors import FedpressError, LayoutError
from fedpress.compression.messages import records
from fedpress.compression.tensors import layout_doubts
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.update import Update
from fedpress.server.fusion import client_ensemble
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion, SentUpdate
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import Ballot
from fedpress.server.rounds.aggregate import ReplyMean
from fedpress.server.rounds.settings import ModelSettings


class WeighedUpdate(NamedTuple):
    """An update that counts in a step."""

    sent: SentUpdate
    weight: float
    vote: bytes = b""  # on the mask; empty: none


class StepRecord(NamedTuple):
    """What a journal holds of a step.

    Attributes:
        updates: updates that counted, in the order of their sum; empty: there was no step.
        checksum: checksum of the model after the round (`GlobalModel.checksum`).
    """

    updates: list[WeighedUpdate]
    checksum: int


class Stepper:
    """The model of a federation and its steps.

    Law: the same updates in the same order take an equal model to an equal model, to the bit (`redo`), but for a step
    with fusion, in which the server trains.

    Args:
        settings: optimizer, downlink, masks and layout of the model.
        clients: receives the client models of each step; None: they are not needed.
        fusion: distillation of the model from the client models at the end of a step.

    Attributes:
        clients, fusion: as given; without `clients`, fusion has its own.
        updates: updates that count in the round so far.
    """

    def __init__(self, settings: ModelSettings, clients: ClientModels | None, fusion: Fusion | None) -> None:
        self.clients = clients if clients is not None or fusion is None else ClientModels()
        self.fusion = fusion
        self.updates: list[WeighedUpdate] = []
        self._settings = settings
        self._model: GlobalModel | None = None
        self._mean = ReplyMean(Layout(()))
        self._ballot: Ballot | None = None

    # ---- the model -------------------------------------------------------------------------------------------------

    def adopt(self, arrays: ArrayRecord) -> None:
        """Take over a model, at the start or where it is not the one that the last step made.

        Raises:
            LayoutError: the arrays do not fit the layout, or none of them can be trained.
        """
        if self._model is None:
            settings = self._settings
            if settings.layout is None:
                _check_guess(arrays)
            self._model = GlobalModel(
                arrays, settings.layout, settings.optimizer, settings.downlink, settings.averaging, settings.masks.first
            )
            self.renew_mean()
            if self.clients is not None:
                self.clients.attach(self._model, settings.prediction)
        elif arrays is not self._model.arrays:
            self._model.replace(arrays)

    @property
    def started(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    @property
    def model(self) -> GlobalModel:
        """The model.

        Raises:
            RuntimeError: there is none yet.
        """
        if self._model is None:
            raise RuntimeError("the federation has no model yet; it gets one from `start` or `configure_train`")
        return self._model

    @property
    def weight(self) -> float:
        """Sum of the weights of the round's updates; 0: none counts."""
        return self._mean.weight

    def renew_mean(self) -> None:
        """Follow the model to another layout: its mask has changed."""
        self._mean = ReplyMean(self.model.layout, self._settings.prediction)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def begin(self, server_round: int) -> None:
        """Begin a round without any update."""
        request = self._settings.masks.vote_request(server_round)
        self._ballot = Ballot(self.model.layout, request) if request else None
        self._mean.reset()
        self.updates = []

    def add(self, update: WeighedUpdate) -> Update:
        """Add an update to the mean and its vote to the ballot, and return it; a bad one adds nothing.

        Raises:
            PayloadError: it cannot be decoded, or an entry is too large (`ReplyMean.add`).
        """
        sent, ballot = update.sent, self._ballot
        vote = ballot.read(update.vote) if ballot and update.vote else None
        side_info = self.model.side_info(sent.download, sent.version)
        decoded = self._mean.add(sent.payload, sent.buffers, update.weight, side_info, self.model.buffers)
        self.updates.append(update)
        if ballot and vote is not None:
            ballot.add(vote, update.weight)
        return decoded

    def drop(self) -> None:
        """Let none of the round's updates count."""
        self._mean.reset()
        self.updates = []

    def step(self, server_round: int, *, publish: bool = True) -> None:
        """Step the model by the mean of the updates.

        Args:
            server_round: number of the round.
            publish: whether the step makes a new version of the held model; False: the caller completes the step
                (`GlobalModel.publish_version`), and there is neither fusion nor a new mask.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        model, ballot = self.model, self._ballot
        if self.clients is not None:
            self.clients.take([update.sent for update in self.updates])
        mean_update, buffers = self._mean.result(model.buffers)
        model.apply_update(mean_update, buffers, self._refine(server_round) if publish else None)
        if not publish:
            return
        del mean_update  # of the size of the model, as what the new version takes
        version = model.masks.version
        model.change_mask(lambda master, layout: self._settings.masks.after(server_round, master, layout, ballot))
        model.publish_version()
        if model.masks.version != version:
            self.renew_mean()

    def redo(self, server_round: int, updates: Sequence[WeighedUpdate], *, publish: bool = True) -> None:
        """Take a step again.

        Args:
            server_round: number of the round.
            updates: its updates, in their order; empty: there was no step.
            publish: as in `step`.
        """
        self.begin(server_round)
        for update in updates:
            self.add(update)
        if updates:
            self.step(server_round, publish=publish)

    def trains(self, server_round: int) -> bool:
        """Return whether the server trains in a round's step, by fusion."""
        return self.fusion is not None and self.fusion.due(server_round)

    def _refine(self, server_round: int) -> Callable[[client_ensemble.Arrays], client_ensemble.Arrays] | None:
        fusion, clients = self.fusion, self.clients
        if fusion is None or clients is None or not fusion.due(server_round):
            return None

        def refine(arrays: client_ensemble.Arrays) -> client_ensemble.Arrays:
            try:
                fused = fusion.fused(arrays, clients, server_round)
                if all(np.isfinite(array).all() for array in fused.values()):
                    return fused
                problem = "the distilled model is not finite"
            except FedpressError as error:
                problem = str(error)
            log(ERROR, "round %d: the model is not distilled from its clients': %s", server_round, problem)
            return arrays

        return refine


def _check_guess(arrays: ArrayRecord) -> None:
    """Check arrays that come without a layout, and log what speaks against the guess by their names.

    Raises:
        LayoutError: no array can be trained.
    """
    named = records.Arrays(arrays)
    layout = Layout.of_arrays(named)
    if not layout.parameters:
        held = (
            f"only integer or boolean arrays and running statistics ({', '.join(list(named)[:6])})"
            if named
            else "no arrays"
        )
        raise LayoutError(
            f"the initial model has {held}, so there is nothing to train by updates. Give"
            " initial_arrays=ArrayRecord(...)"
            " with its floating arrays; models that are bytes or whole numbers, such as trees of XGBoost, need"
            " a strategy"
            " of Flower's own, such as FedXgbBagging, and no compress(...)"
        )
    for doubt in layout_doubts.doubts(named, layout):
        log(WARNING, "SparseFed: %s", doubt)
