"""The model that the server keeps: the master vector, its optimizer, and the buffers."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedpress.compression.messages import records
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import Mask
from fedpress.server.checkpoint.state import CheckpointError, State
from fedpress.server.model import optimizers
from fedpress.server.model.average import Average
from fedpress.server.model.mask_history import Epochs
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink, Versions

Refine: TypeAlias = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""What the server itself makes of a model: from its arrays by name to these."""
NextMask: TypeAlias = Callable[[Vector, Layout], Mask | None]
"""Shown the master after a step: the mask from here on, None for the same."""


class GlobalModel:
    """Master parameters in float32, stepped in place by the server's optimizer; buffers as values beside them.

    Args:
        arrays: the initial model, every array of it.
        layout: which arrays are parameters and which buffers; None: guessed by the usual names.
        optimizer: makes the optimizer from the master.
        downlink: how clients get new versions; None: they get the master itself, whole.
        averaging: decay of the mean that is published (`average.Average`); 0: the newest model is published.
        mask: which weights the model has from the start; None: all.

    Attributes:
        layout: of the parameters and buffers, within the mask of the epoch.
        epochs: the epoch, its mask, and how that is sent.
        master: the parameters, float32 (n,); not to be written to from outside.
        optimizer: over the master's memory.
        arrays: the held model: as clients have it, in the application's own order and types.
        versions: of the held model, with a downlink.

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
        named = records.to_numpy(arrays)
        self.epochs = Epochs(mask)
        self.layout = (layout if layout is not None else Layout.of_arrays(named)).within(mask)
        self.master: Vector = flatten.flatten(named, self.layout)
        self.optimizer = optimizer(self.master)
        self._make_optimizer = optimizer
        self.arrays = arrays
        self._steps = 0
        self._average = Average(averaging) if averaging else None
        self._buffers = self._buffers_of(named)
        self.versions: Versions | None = None
        if downlink:
            buffers = self._packed_buffers()
            self.versions = Versions(self.master, buffers, self.layout, downlink, self.epochs.number)
        if downlink or mask is not None:
            self.arrays = self._held_arrays()

    @property
    def version(self) -> int:
        """The number of the held model: how many steps made it."""
        return self._steps

    @property
    def published(self) -> ArrayRecord:
        """The model to evaluate and to publish: the mean of the held models so far, or the newest."""
        if self._average is None or not self._average.arrays:
            return self.arrays
        return records.from_numpy({name: self._average.arrays[name] for name in self.arrays})

    def replace(self, arrays: ArrayRecord) -> None:
        """Take another model's values; the optimizer keeps its state."""
        named = records.to_numpy(arrays)
        self.master[:] = flatten.flatten(named, self.layout)
        self._buffers = self._buffers_of(named)
        self.arrays = arrays

    @property
    def buffers(self) -> Mapping[str, NDArray[Any]]:
        """The buffers by name."""
        return self._buffers

    def step(
        self,
        mean_update: Vector,
        buffers: dict[str, NDArray[Any]],
        *,
        refine: Refine | None = None,
        next_mask: NextMask | None = None,
    ) -> None:
        """Move the master along the mean update (n,) and take over the buffers.

        Args:
            mean_update: of the clients.
            buffers: of theirs.
            refine: what the server itself then makes of the model, arrays by name, within the same step.
            next_mask: is shown the new master and its layout, and says which mask it is to have from here on; None
                keeps it. What survives keeps its value and the optimizer's state, what is new begins at zero.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        self.move(mean_update, buffers, refine)
        mask = next_mask(self.master, self.layout) if next_mask else None
        if mask is not None and mask != self.layout.mask:
            self._change(mask)
        self.advance()

    def move(self, mean_update: Vector, buffers: dict[str, NDArray[Any]], refine: Refine | None = None) -> None:
        """The first half of `step`: the master moves, and what clients hold does not yet.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        self.optimizer.step(mean_update)
        if refine:
            named = refine({**flatten.unflatten(self.master, self.layout), **buffers})
            self.master[:] = flatten.flatten(named, self.layout)
            buffers = self._buffers_of(named)
        if not np.isfinite(self.master).all():
            raise FloatingPointError("the model is no longer finite; is the server's learning rate too high?")
        self._buffers = buffers

    def advance(self) -> None:
        """The second half of `step`: a new version of what clients hold follows the master."""
        self._new_version()
        if self._average:
            self._average.add(self._held())

    def shift(self, start: ArrayRecord, arrays: ArrayRecord, downlink: Downlink) -> None:
        """Take in what the server has learned by itself, as one more step: the master moves by `arrays - start`.

        The optimizer keeps its state, and clients what they keep back. The mean of the models so far, if there is
        one, becomes `arrays`; what clients hold goes toward the master.

        Args:
            start: the model that it began with; `published`, most likely.
            arrays: what came of it; the model's buffers are these.
            downlink: how much of it goes down with the new version; its `draw` is not looked at.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        named = records.to_numpy(arrays)
        self.master += flatten.flatten(named, self.layout) - flatten.flatten(records.to_numpy(start), self.layout)
        if not np.isfinite(self.master).all():
            raise FloatingPointError("the model is no longer finite: what the server has learned by itself is not")
        self._buffers = self._buffers_of(named)
        self._new_version(downlink)
        if self._average:
            self._average.replace(named)

    def _new_version(self, downlink: Downlink | None = None) -> None:
        self._steps += 1
        if self.versions:
            self.versions.advance(self.master, self._packed_buffers(), downlink)
        self.arrays = self._held_arrays()

    def _change(self, mask: Mask) -> None:
        layout = self.layout.within(mask)
        move = self.layout.change_to(layout)
        kept = optimizers.moved(self.optimizer.saved(), move)
        self.epochs.change(mask)
        self._take_master(move.apply(self.master), layout)
        self.optimizer.restore(kept)
        if self.versions:
            self.versions.move(layout, self.epochs.number)
        if self._average:
            self._average.keep(flatten.flags(layout))

    def _take_master(self, master: Vector, layout: Layout) -> None:
        self.master, self.layout = master, layout
        self.optimizer = self._make_optimizer(master)

    def saved(self) -> State:
        """Return master, optimizer, buffers and versions."""
        own = State(
            {"master": self.master, **{f"buffers/{name}": array for name, array in self._buffers.items()}},
            {
                "layout": self.layout.fingerprint,
                "steps": self._steps,
                "downlink": self.versions is not None,
                "averaging": self._average is not None,
            },
        )
        parts = {"own": own, "optimizer": self.optimizer.saved()}
        if self.versions:
            parts["versions"] = self.versions.saved()
        if self._average:
            parts["average"] = self._average.saved()
        if self.epochs.number:
            parts["epochs"] = self.epochs.saved()
        return State.of(**parts)

    def restore(self, state: State) -> None:
        """Take up what `saved` returned: from here on this model goes on as that one would have.

        Raises:
            CheckpointError: it is of another model, or of one that went down in another way.
        """
        own = state.part("own")
        epochs = Epochs(None)
        if "epochs" in state.meta:
            epochs.restore(state.part("epochs"))
        fits = epochs.mask is None or epochs.mask.size == self.layout.full.size
        layout = self.layout.within(epochs.mask) if fits else self.layout.full
        if own.meta["layout"] != layout.fingerprint:
            raise CheckpointError(
                f"the checkpoint is of another model (layout {own.meta['layout']}, this one is"
                f" {layout.fingerprint}); give the federation a folder of its own"
            )
        for name, part in (("downlink", self.versions), ("averaging", self._average)):
            if own.meta.get(name, False) != (part is not None):
                raise CheckpointError(f"the checkpoint was made with another `{name}`; keep it, or take a new folder")
        self.epochs = epochs
        self._take_master(own.arrays["master"].copy(), layout)
        self._buffers = {spec.name: own.arrays[f"buffers/{spec.name}"] for spec in self.layout.buffers}
        self._steps = own.meta["steps"]
        self.optimizer.restore(state.part("optimizer"))
        if self.versions:
            self.versions.restore(state.part("versions"), layout, epochs.number)
        if self._average:
            self._average.restore(state.part("average"))
        self.arrays = self._held_arrays()

    def _held_arrays(self) -> ArrayRecord:
        named = self._held()
        return records.from_numpy({name: named[name] for name in self.arrays})

    def _held(self) -> dict[str, NDArray[Any]]:
        held = self.versions.held.floats(self.layout) if self.versions else self.master
        return {**flatten.unflatten(held, self.layout), **self._buffers}

    def _packed_buffers(self) -> bytes:
        return buffer_codec.pack(self._buffers, self.layout) if self.layout.buffers else b""

    def _buffers_of(self, named: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {spec.name: named[spec.name] for spec in self.layout.buffers}
