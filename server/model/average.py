"""Exponential moving average of the global models of a run: steadier, and often better, than the newest model.

Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018, "Averaging
Weights Leads to Wider Optima and Better Generalization" (UAI). It costs the server one more model in memory and
nothing on the wire: clients train on from the model that they hold, and the mean is evaluated and published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class RunningMean:
    """State of an `Average`.

    Attributes:
        arrays: arrays of the mean by name. Integers, such as counters, are the newest model's.
        weight: sum of 1, decay, decay^2, ...; 0: there was no model yet.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    weight: float = 0.0


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
        running: the mean and its weight.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the average must be above 0 and below 1, and is {decay}")
        self.running = RunningMean()
        self._decay = decay

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the mean by name."""
        return self.running.arrays

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the newest model."""
        self.running.weight = 1 + self._decay * self.running.weight
        for name, array in arrays.items():
            if name in self.arrays and np.issubdtype(array.dtype, np.floating):
                mean, constant = self.arrays[name], ~np.isfinite(array)
                with np.errstate(invalid="ignore"):
                    mean += ((array - mean) / self.running.weight).astype(mean.dtype)
                mean[constant] = array[constant]  # such as a causal mask of -inf, a buffer
            else:
                self.arrays[name] = array.copy()

    def replace(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the mean by another model, with the weight of the models so far."""
        self.running = RunningMean(
            {name: array.copy() for name, array in arrays.items()}, max(1.0, self.running.weight)
        )

    def keep(self, flags: Mapping[str, NDArray[np.bool_]]) -> None:
        """Set to zero the entries outside a mask: `flags` by name, each of its array's shape."""
        for name, present in flags.items():
            if name in self.arrays:
                self.arrays[name][~present] = 0
