"""The weighted mean of the global models of a run: steadier, and often better, than the newest alone.

Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018, "Averaging
Weights Leads to Wider Optima and Better Generalization" (UAI). It costs the server one more model in memory and
nothing on the wire: clients go on from the model that they hold, and the mean is what is evaluated and published.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.server.checkpoint.state import State


class Average:
    """Mean of the models so far with the weights 1, decay, decay^2, ... from the newest back.

    >>> average = Average(0.5)
    >>> average.add({"w": np.float32([2.0])})
    >>> average.add({"w": np.float32([5.0])})  # (5 + 0.5 * 2) / 1.5
    >>> average.arrays["w"].tolist()
    [4.0]

    Args:
        decay: in (0, 1); 1 / (1 - decay) is about the number of rounds that count.

    Attributes:
        arrays: the mean by name. Arrays of integers, such as counters, are the newest model's.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the average must be above 0 and below 1, and is {decay}")
        self.arrays: dict[str, NDArray[Any]] = {}
        self._decay = decay
        self._weight = 0.0

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take in the newest model."""
        self._weight = 1 + self._decay * self._weight
        for name, array in arrays.items():
            if name in self.arrays and np.issubdtype(array.dtype, np.floating):
                mean = self.arrays[name]
                mean += ((array - mean) / self._weight).astype(mean.dtype)
            else:
                self.arrays[name] = array.copy()

    def replace(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take another model as the mean, with the weight of the models so far."""
        self.arrays = {name: array.copy() for name, array in arrays.items()}
        self._weight = max(1.0, self._weight)

    def keep(self, flags: Mapping[str, NDArray[np.bool_]]) -> None:
        """Set to zero what a mask does not have: `flags` by name, each of its array's shape."""
        for name, there in flags.items():
            if name in self.arrays:
                self.arrays[name][~there] = 0

    def saved(self) -> State:
        """Return the mean and its weight."""
        return State(self.arrays, {"weight": self._weight})

    def restore(self, state: State) -> None:
        """Take up what `saved` returned."""
        self.arrays, self._weight = {name: array.copy() for name, array in state.arrays.items()}, state.meta["weight"]
