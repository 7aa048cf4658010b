"""The model that the server keeps: the master vector, its optimiser, and the buffers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedpress.compression import records, vector
from fedpress.compression.vector import Layout, Vector
from fedpress.server import optimize
from fedpress.server.checkpoint import CheckpointError, State
from fedpress.server.optimize import ServerOptimizer
from fedpress.server.versions import Downlink, Versions


class GlobalModel:
    """Master parameters in float32, stepped in place by the server's optimiser; buffers as values beside them.

    Args:
        arrays: the initial model, every array of it.
        layout: which arrays are parameters and which buffers; None: guessed by the usual names.
        optimizer: makes the optimiser from the master.
        downlink: how clients get new versions; None: they get the master itself, whole.

    Attributes:
        layout: of the parameters and buffers.
        master: the parameters, float32 (n,); not to be written to from outside.
        optimizer: torch's, over the master's memory.
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
    ) -> None:
        named = records.to_numpy(arrays)
        self.layout = layout if layout is not None else Layout.of_arrays(named)
        self.master: Vector = vector.flatten(named, self.layout)
        self.optimizer = optimizer(self.master)
        self.arrays = arrays
        self._steps = 0
        self._buffers = self._buffers_of(named)
        self.versions: Versions | None = None
        if downlink:
            self.versions = Versions(self.master, self._packed_buffers(), self.layout, downlink)
            self.arrays = self._held_arrays()

    @property
    def version(self) -> int:
        """The number of the held model: how many steps made it."""
        return self._steps

    def replace(self, arrays: ArrayRecord) -> None:
        """Take another model's values; the optimiser keeps its state."""
        named = records.to_numpy(arrays)
        self.master[:] = vector.flatten(named, self.layout)
        self._buffers = self._buffers_of(named)
        self.arrays = arrays

    @property
    def buffers(self) -> Mapping[str, NDArray[Any]]:
        """The buffers by name."""
        return self._buffers

    def step(self, mean_update: Vector, buffers: dict[str, NDArray[Any]]) -> None:
        """Move the master along the mean update (n,) and take over the buffers.

        Raises:
            FloatingPointError: the master is no longer finite.
        """
        optimize.step(self.optimizer, mean_update)
        if not np.isfinite(self.master).all():
            raise FloatingPointError("the model is no longer finite; is the server's learning rate too high?")
        self._buffers = buffers
        self._steps += 1
        if self.versions:
            self.versions.advance(self.master, self._packed_buffers())
        self.arrays = self._held_arrays()

    def saved(self) -> State:
        """Return master, optimiser, buffers and versions."""
        own = State(
            {"master": self.master, **{f"buffers/{name}": array for name, array in self._buffers.items()}},
            {"layout": self.layout.fingerprint, "steps": self._steps, "downlink": self.versions is not None},
        )
        parts = {"own": own, "optimizer": optimize.saved(self.optimizer)}
        return State.of(**parts, **({"versions": self.versions.saved()} if self.versions else {}))

    def restore(self, state: State) -> None:
        """Take up what `saved` returned: from here on this model goes on as that one would have.

        Raises:
            CheckpointError: it is of another model, or of one that went down in another way.
        """
        own = state.part("own")
        if own.meta["layout"] != self.layout.fingerprint:
            raise CheckpointError(
                f"the checkpoint is of another model (layout {own.meta['layout']}, this one is"
                f" {self.layout.fingerprint}); give the federation a folder of its own"
            )
        if own.meta["downlink"] != (self.versions is not None):
            raise CheckpointError("the checkpoint was made with another `downlink`; keep it, or take a new folder")
        self.master[:] = own.arrays["master"]
        self._buffers = {spec.name: own.arrays[f"buffers/{spec.name}"] for spec in self.layout.buffers}
        self._steps = own.meta["steps"]
        optimize.restore(self.optimizer, state.part("optimizer"))
        if self.versions:
            self.versions.restore(state.part("versions"))
        self.arrays = self._held_arrays()

    def _held_arrays(self) -> ArrayRecord:
        held = self.versions.held.floats(self.layout) if self.versions else self.master
        named = {**vector.unflatten(held, self.layout), **self._buffers}
        return records.from_numpy({name: named[name] for name in self.arrays})

    def _packed_buffers(self) -> bytes:
        return vector.pack_buffers(self._buffers, self.layout) if self.layout.buffers else b""

    def _buffers_of(self, named: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {spec.name: named[spec.name] for spec in self.layout.buffers}
