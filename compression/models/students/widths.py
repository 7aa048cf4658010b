"""All the pruned versions of a model, by the width of each layer, without pruning each to see how large it is.

The shapes of a pruned model are linear in the widths: each channel or head takes the same away from the shapes. So one
pruning for each layer tells them all, and of the many widths that a search looks at, only those that it keeps are
really pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import Shape
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students import budgets
from fedpress.compression.models.students.settings import UNITS, Budget


class Widths:
    """The versions of one model.

    >>> import torch
    >>> versions = Widths(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2)), torch.zeros(1, 4))
    >>> versions.layers, versions.shapes({"0": 10})
    ({'0': 100}, {'0.weight': (10, 4), '0.bias': (10,), '2.weight': (2, 10), '2.bias': (2,)})

    Args:
        model: The model; untouched.
        example_input: A batch as the model is called with, (N, ...).

    Attributes:
        layers: Those that can be made smaller, and how many channels or heads each has.

    Raises:
        PruneError: The model cannot be pruned.
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self._model, self._example = model, example_input
        self._shapes = architecture.shapes(model)
        self.layers = structural.layers_of(model, example_input)
        self._units = {name: self._less_by_one(name) for name, most in self.layers.items() if most > 1}

    def _less_by_one(self, layer: str) -> dict[str, Shape]:
        """What one channel of a layer takes away from the shapes that it is in."""
        most = self.layers[layer]
        smaller = architecture.shapes(structural.keep_fraction(self._model, self._example, {layer: (most - 1) / most}))
        differences = {
            name: tuple(a - b for a, b in zip(shape, smaller[name], strict=True))
            for name, shape in self._shapes.items()
        }
        return {name: difference for name, difference in differences.items() if any(difference)}

    def kept(self, fraction: float, exponents: Mapping[str, float] | None = None) -> dict[str, int]:
        """The widths if each layer keeps the fraction to the power of its exponent, at least 1; without any, 1."""
        powers = exponents or {}
        return {name: max(1, round(most * fraction ** powers.get(name, 1.0))) for name, most in self.layers.items()}

    def shapes(self, widths: Mapping[str, int]) -> dict[str, Shape]:
        """The shape of every tensor at these widths; layers without one keep theirs."""
        shapes = dict(self._shapes)
        for layer, width in widths.items():
            removed = self.layers[layer] - width
            for name, unit in self._units.get(layer, {}).items():
                shapes[name] = tuple(size - removed * less for size, less in zip(shapes[name], unit, strict=True))
        return shapes

    def hollow(self, widths: Mapping[str, int]) -> nn.Module:
        """A model of these widths whose weights are zeros: what it costs is what the pruned one costs."""
        model = copy.deepcopy(self._model).cpu()
        architecture.shrink(model, self.shapes(widths))
        for tensor in architecture.tensors(model).values():
            tensor.zero_()
        return model

    def pruned(self, widths: Mapping[str, int]) -> nn.Module:
        """The model pruned to these widths, with the weights that are left."""
        fractions = {name: width / self.layers[name] for name, width in widths.items()}
        return structural.keep_fraction(self._model, self._example, fractions)

    def largest(
        self,
        budget: Budget,
        exponents: Mapping[str, float] | None = None,
        quantization: Quantization = Quantization(),
    ) -> dict[str, int]:
        """The largest widths within a budget, in the proportion that the exponents give.

        Args:
            budget: What the model may cost; a fraction of the parameters is of this model's own.
            exponents: Above 0, by layer as in `layers`: those with a small one stay wide. None: all keep the same.
            quantization: For `bundle_bytes`: how the file's weights are written.

        Raises:
            BudgetError: Even one channel in every layer is too much.
        """
        most = budgets.most(budget, self._model)
        known: dict[tuple[int, ...], bool] = {}

        def cost(widths: dict[str, int]) -> float:
            return budgets.cost_of(self.hollow(widths), self._example, budget, quantization)

        def fits(widths: dict[str, int]) -> bool:
            key = tuple(widths.values())
            if key not in known:
                known[key] = cost(widths) <= most
            return known[key]

        best = self.kept(0.0, exponents)
        if not fits(best):
            raise structural.BudgetError(
                f"a student within {most:,.10g} {UNITS[budget.kind]} is impossible: with one channel left in every"
                f" layer that can be pruned, it takes {cost(best):,.10g}"
            )
        if fits(whole := dict(self.layers)):
            return whole
        low, high = 0.0, 1.0
        for _ in range(structural.BISECTIONS):
            middle = (low + high) / 2
            widths = self.kept(middle, exponents)
            if fits(widths):
                best, low = widths, middle
            else:
                high = middle
        return best
