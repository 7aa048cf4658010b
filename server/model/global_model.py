"""The global model on the server: the master vector, its optimizer, the buffers, and the held model."""

import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedpress.compression.errors import LayoutError
from fedpress.compression.messages import records
from fedpress.compression.messages.orders import Download
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, Vector, is_finite
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.model import optimizers
from fedpress.server.model.average import Average, RunningMean
from fedpress.server.model.mask_history import MaskHistory, MaskHistoryState
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink, Versions, VersionsState

Refine: TypeAlias = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Change to the model by the server itself: takes its arrays by name and returns them changed."""
NextMask: TypeAlias = Callable[[Vector, Layout], Mask | None]
"""Takes the master after a step and its layout, and returns the next mask; None: the mask stays."""


class ModelState(NamedTuple):
    """State of a global model.

    Attributes:
        layout: fingerprint of the layout within the present mask.
        steps: number of steps that made the newest version.
        master: parameters, float32 (n,).
        buffers: buffers by name.
        optimizer: state of the optimizer by name.
        masks: the last masks.
        versions: versions of the held model; None: there is no downlink.
        average: mean of the models so far; None: the newest model is published.
        frozen: digest of the parameters that are not trained (`flatten.digest`).
    """

    layout: int
    steps: int
    master: Vector
    buffers: dict[str, NDArray[Any]]
    optimizer: dict[str, Tensor]
    masks: MaskHistoryState
    versions: VersionsState | None
    average: RunningMean | None
    frozen: bytes


class GlobalModel:
    """Master parameters in float32, stepped in place by the server's optimizer; buffers as values beside them.

    Args:
        arrays: every array of the initial model.
        layout: which arrays are parameters and which buffers; None: guessed by the usual names.
        optimizer: makes the optimizer from the master.
        downlink: compression of the download; None: clients get the whole master.
        averaging: decay of the mean that is published (`average.Average`); 0: the newest model is published.
        mask: initial mask; None: the model has all weights.

    Attributes:
        layout: layout of the parameters and buffers, within the newest mask.
        masks: the newest mask, its version, and its coding for clients.
        master: parameters, float32 (n,).
        optimizer: optimizer of the master, whose memory it shares.
        arrays: the held model, as clients have it, in the application's own order and types.
        versions: versions of the held model; None: there is no downlink.

    Raises:
        LayoutError: the arrays do not fit the layout.
    """

    def __init__(
        self,
        arrays: ArrayRecord,
        layout: Layout | None,
        optimizer: ServerOptimizer,
        downlink: Downlink | None = None,
        averaging: float = 0.0,
        mask: Mask | None = None,
    ) -> None:
        named = records.Arrays(arrays)
        self.masks = MaskHistory(mask)
        self.layout = (layout if layout is not None else Layout.of_arrays(named)).within(mask)
        self.master: Vector = flatten.flatten(named, self.layout)
        self.optimizer = optimizer(self.master)
        self._make_optimizer = optimizer
        self.arrays = arrays
        self._steps = 0
        self._names = tuple(named)
        self._average = Average(averaging) if averaging else None
        self._buffers = self._buffers_of(named)
        self._packed: tuple[dict[str, NDArray[Any]], bytes] | None = None  # buffers, and the same as bytes
        self._frozen = flatten.frozen(named, self.layout)
        self.versions: Versions | None = None
        if downlink:
            whole = self.master if mask is None else flatten.flatten(named, self.layout.full)
            buffers = self._packed_buffers()
            self.versions = Versions(whole, buffers, self.layout, downlink, self.masks.version, self.frozen_digest)
        if downlink or mask is not None:
            self.arrays = self._held_record()

    @property
    def version(self) -> int:
        """Version of the held model: the number of steps that made it."""
        return self._steps

    @property
    def published(self) -> ArrayRecord:
        """The model to evaluate and to publish: the mean of the held models so far, or the newest."""
        if self._average is None or not self._average.arrays:
            return self.arrays
        named = {**self._frozen, **self._average.arrays}
        return records.from_numpy({name: named[name] for name in self.arrays})

    def replace(self, arrays: ArrayRecord) -> None:
        """Take over another model's values; the optimizer keeps its state.

        Raises:
            LayoutError: the arrays do not fit the layout, or a frozen parameter has another value.
        """
        named = records.Arrays(arrays)
        if flatten.digest(named, self.layout) != self.frozen_digest:
            raise LayoutError(
                "the new model's frozen parameters differ from those that clients have; a parameter that changes must"
                " be trained: requires_grad=True, on both sides"
            )
        flatten.flatten(named, self.layout, out=self.master)
        self._buffers = self._buffers_of(named)
        self.arrays = arrays

    @property
    def frozen(self) -> Mapping[str, NDArray[Any]]:
        """The parameters that are not trained, by name, and the buffers of frozen modules."""
        return self._frozen

    @cached_property
    def frozen_digest(self) -> bytes:
        """Digest of what is not trained (`flatten.digest`); empty: all is."""
        return flatten.digest(self._frozen, self.layout)

    @property
    def buffers(self) -> Mapping[str, NDArray[Any]]:
        """The buffers by name."""
        return self._buffers

    @property
    def sent_buffers(self) -> bytes:
        """The buffers that clients get with the newest version, as `buffer_codec.pack` writes them."""
        if self.versions:
            return self.versions.held.buffers
        if self._packed is None or self._packed[0] is not self._buffers:
            self._packed = self._buffers, self._packed_buffers()
        return self._packed[1]

    def step(
        self,
        mean_update: Vector,
        buffers: dict[str, NDArray[Any]],
        *,
        refine: Refine | None = None,
        next_mask: NextMask | None = None,
    ) -> None:
        """Move the master along the mean update and take over the buffers.

        Args:
            mean_update: mean of the clients' updates, float32 (n,); it is overwritten.
            buffers: buffers after the round, by name.
            refine: change by the server itself within the same step; None: there is none.
            next_mask: returns the next mask; None: the mask stays. Weights that survive keep their value and the
                optimizer's state, new ones begin at zero.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        self.apply_update(mean_update, buffers, refine)
        self.change_mask(next_mask)
        self.publish_version()

    def change_mask(self, next_mask: NextMask | None) -> None:
        """Move to the next mask, between the two halves of `step`.

        Args:
            next_mask: returns the next mask; None: the mask stays.
        """
        mask = next_mask(self.master, self.layout) if next_mask else None
        if mask is not None and mask != self.layout.mask:
            self._change_mask(mask)

    def apply_update(self, mean_update: Vector, buffers: dict[str, NDArray[Any]], refine: Refine | None = None) -> None:
        """Move the master and leave the held model: the first half of `step`.

        Args:
            mean_update: mean of the clients' updates, float32 (n,); it is overwritten.
            buffers: buffers after the round, by name.
            refine: change by the server itself; None: there is none.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        self.optimizer.step(mean_update)
        if refine:
            named = refine({**flatten.unflatten(self.master, self.layout), **buffers})
            flatten.flatten(named, self.layout, out=self.master)
            buffers = self._buffers_of(named)
        if not is_finite(self.master):
            raise FloatingPointError("the model is no longer finite; is the server's learning rate too high?")
        self._buffers = buffers

    def publish_version(self) -> None:
        """Make a new version of the held model, nearer to the master: the second half of `step`."""
        self._new_version()
        if self._average:
            kept = records.of_arrays((name, array) for name, array in self.arrays.items() if name not in self._frozen)
            self._average.add(records.Arrays(kept))

    def apply_server_update(self, start: ArrayRecord, arrays: ArrayRecord, downlink: Downlink) -> None:
        """Apply training by the server itself, as one more step: the master moves by `arrays - start`.

        The optimizer keeps its state, and clients their residuals. The mean of the models so far, if there is one,
        becomes `arrays`; the held model moves toward the master.

        Args:
            start: the model before the training; `published`, most likely.
            arrays: the model after it, whose buffers are taken over.
            downlink: density and levels of the new version, of which the rest is ignored.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        named = records.Arrays(arrays)
        moved = flatten.flatten(named, self.layout)
        moved -= flatten.flatten(records.Arrays(start), self.layout)
        self.master += moved
        del moved
        if not is_finite(self.master):
            raise FloatingPointError("the model is no longer finite: its training on the server has diverged")
        self._buffers = self._buffers_of(named)
        self._new_version(downlink)
        if self._average:
            self._average.replace(self._without_frozen(named))

    def _new_version(self, downlink: Downlink | None = None) -> None:
        self._steps += 1
        if self.versions:
            self.versions.advance(self.master, self._packed_buffers(), downlink)
        self.arrays = self._held_record()

    def _change_mask(self, mask: Mask) -> None:
        layout = self.layout.within(mask)
        change = self.layout.change_to(layout)
        optimizer_state = optimizers.remapped(self.optimizer.state, change)
        self.masks.change(mask)
        self._take_master(change.apply(self.master), layout)
        self.optimizer.state = optimizer_state
        if self.versions:
            self.versions.change_mask(layout, self.masks.version)
        if self._average:
            self._average.keep(flatten.flags(layout))

    def _take_master(self, master: Vector, layout: Layout) -> None:
        self.master, self.layout = master, layout
        self.optimizer = self._make_optimizer(master)

    def side_info(self, download: Download | None, version: int) -> SideInfo:
        """Return the side information of an update, the same that its client had.

        Args:
            download: download that brought the client to the version it trained from; None: the model went whole.
            version: that version.
        """
        return self.versions.side_info(download, version) if self.versions else SideInfo(self.layout)

    def state(self) -> ModelState:
        """Return master, optimizer, buffers, masks and versions."""
        return ModelState(
            self.layout.fingerprint,
            self._steps,
            self.master,
            self._buffers,
            self.optimizer.state,
            self.masks.state(),
            self.versions.state() if self.versions else None,
            self._average.running if self._average else None,
            self.frozen_digest,
        )

    def checksum(self) -> int:
        """Return a CRC-32 of master, buffers and held model, the same for equal models."""
        total = zlib.crc32(self.master.data)
        for _, array in sorted(self._buffers.items()):
            total = zlib.crc32(np.ascontiguousarray(array).data, total)
        return zlib.crc32(self.versions.tag, total) if self.versions else total

    def release(self) -> None:
        """Give back the memory of what `restore` brings, which must follow, and takes over its state."""
        self.master = np.empty(0, np.float32)
        self.optimizer.master, self.optimizer.state = torch.from_numpy(self.master), {}
        self.arrays = ArrayRecord()
        if self.versions:
            self.versions.release()
        if self._average:
            self._average.running = RunningMean()

    def restore(self, state: ModelState) -> None:
        """Take up a state.

        Raises:
            CheckpointError: it is of another model, or of one with another downlink or averaging.
        """
        masks = MaskHistory(None)
        masks.restore(state.masks)
        fits = masks.mask is None or masks.mask.size == self.layout.full.size
        layout = self.layout.within(masks.mask) if fits else self.layout.full
        if state.layout != layout.fingerprint:
            raise CheckpointError(
                f"the checkpoint is of another model (layout {state.layout}, this one is {layout.fingerprint});"
                " give the federation a folder of its own"
            )
        for name, part, stored in (
            ("downlink", self.versions, state.versions), ("averaging", self._average, state.average)
        ):  # fmt: skip
            if (stored is None) != (part is None):
                raise CheckpointError(f"the checkpoint was made with another `{name}`; keep it, or take a new folder")
        if state.frozen != self.frozen_digest:
            raise CheckpointError(
                "the checkpoint was made with other frozen parameters than model() or `init` gives now; bring back the"
                " weights that the run began with, or give the federation a folder of its own"
            )
        self.masks = masks
        owned = not len(self.master)  # after `release` the state is of nobody else
        self._take_master(state.master if owned else state.master.copy(), layout)
        self._buffers, self._steps = state.buffers, state.steps
        self.optimizer.state = state.optimizer
        if self.versions and state.versions:
            self.versions.restore(state.versions, layout, masks.version)
        if self._average and state.average:
            self._average.running = state.average
        self.arrays = self._held_record()

    def _held_record(self) -> ArrayRecord:
        """Return the held model as a record: where clients hold one, its arrays are made when they are read."""
        layout, kept = self.layout, {**self._buffers, **self._frozen}
        if self.versions is None:
            kept |= flatten.unflatten(self.master, layout)
            return records.from_numpy({name: kept[name] for name in self._names})
        derived = records.derived(self.versions.held.readers(layout), kept, layout)
        return records.of_arrays((name, derived[name]) for name in self._names)

    def _without_frozen(self, named: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return arrays without those that never change, which no mean or checkpoint needs to hold."""
        return {name: array for name, array in named.items() if name not in self._frozen}

    def _packed_buffers(self) -> bytes:
        # Of the user's own model, or of replies that were checked.
        return buffer_codec.pack(self._buffers, self.layout, None) if self.layout.buffers else b""

    def _buffers_of(self, named: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {spec.name: named[spec.name] for spec in self.layout.buffers}
