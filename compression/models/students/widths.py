"""All pruned versions of a model by the width of each layer, with their costs but without pruning each.

The shapes of a pruned model are linear in the widths, because each channel or head of a layer reduces them by the same
amount. One pruning for each layer therefore determines the shapes at all widths, and a search prunes only the versions
that it keeps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import Shape
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students import budgets
from fedpress.compression.models.students.settings import UNITS, Budget


class Widths:
    """The pruned versions of one model.

    >>> import torch
    >>> versions = Widths(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2)), torch.zeros(1, 4))
    >>> versions.layers, versions.shapes({"0": 10})
    ({'0': 100}, {'0.weight': (10, 4), '0.bias': (10,), '2.weight': (2, 10), '2.bias': (2,)})

    Args:
        model: The model; untouched.
        example_input: Batch of inputs, (N, ...).
        criterion: Order of removal within a layer, and the layers to ignore.

    Attributes:
        layers: Number of channels or heads of each prunable layer, by name.

    Raises:
        PruneError: The model cannot be pruned.
    """

    def __init__(self, model: nn.Module, example_input: Batch, criterion: Criterion = importance.DEFAULT) -> None:
        self._model, self._example = model, example_input
        self._pruner = structural.Pruner(model, example_input, criterion=criterion)
        self._shapes = architecture.shapes(model)
        self.layers = self._pruner.layers
        less = {name: self._less_by_one(name) for name, most in self.layers.items() if most > 1}
        self._units = {name: shapes for name, (shapes, _) in less.items()}
        self._numbers = {name: numbers for name, (_, numbers) in less.items()}

    def _less_by_one(self, layer: str) -> tuple[dict[str, Shape], dict[str, int]]:
        """Return the reductions by one channel of a layer: of each affected tensor's shape, and of numbers beside."""
        most = self.layers[layer]
        with self._pruner.measured({layer: (most - 1) / most}) as model:
            smaller, numbers = architecture.shapes(model), architecture.sizes(model)
        differences = {
            name: tuple(a - b for a, b in zip(shape, smaller[name], strict=True))
            for name, shape in self._shapes.items()
        }
        return (
            {name: difference for name, difference in differences.items() if any(difference)},
            {name: self._number(name) - number for name, number in numbers.items()},
        )

    def _number(self, name: str) -> int:
        path, _, attribute = name.rpartition(".")
        return int(getattr(self._model.get_submodule(path), attribute))

    def kept(self, fraction: float, exponents: Mapping[str, float] | None = None) -> dict[str, int]:
        """Return the widths where each layer keeps fraction^exponent of its channels, at least one.

        Args:
            fraction: In [0, 1].
            exponents: Exponents by layer, 1 where there is none; None: 1 for all.
        """
        powers = exponents or {}
        return {name: max(1, round(most * fraction ** powers.get(name, 1.0))) for name, most in self.layers.items()}

    def shapes(self, widths: Mapping[str, int]) -> dict[str, Shape]:
        """Return the shape of every tensor at given widths; layers without one stay whole."""
        shapes = dict(self._shapes)
        for layer, width in widths.items():
            removed = self.layers[layer] - width
            for name, unit in self._units.get(layer, {}).items():
                shapes[name] = tuple(size - removed * less for size, less in zip(shapes[name], unit, strict=True))
        return shapes

    def sizes(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the numbers beside the shapes at given widths (`architecture.sizes`)."""
        numbers: dict[str, int] = {}
        for layer, width in widths.items():
            for name, unit in self._numbers.get(layer, {}).items():
                numbers[name] = numbers.get(name, self._number(name)) - (self.layers[layer] - width) * unit
        return numbers

    def hollow(self, widths: Mapping[str, int]) -> nn.Module:
        """Return a model of given widths with weights of zero, which has the costs of the pruned one."""
        model = copy.deepcopy(self._model).cpu()
        architecture.shrink(model, self.shapes(widths), self.sizes(widths))
        for tensor in architecture.tensors(model).values():
            tensor.zero_()
        return model

    def pruned(self, widths: Mapping[str, int]) -> nn.Module:
        """Return the model pruned to given widths, with its remaining weights."""
        fractions = {name: width / self.layers[name] for name, width in widths.items()}
        return self._pruner.keep(fractions)

    def largest(
        self,
        budget: Budget,
        exponents: Mapping[str, float] | None = None,
        quantization: Quantization = Quantization(),
    ) -> dict[str, int]:
        """Return the largest widths within a budget, in the proportion given by the exponents.

        Args:
            budget: Budget; a fraction of the parameters is of this model's own.
            exponents: Exponents above 0 by layer; a layer with a small one stays wide. None: 1 for all.
            quantization: For `bundle_bytes`: quantization of the weights.

        Raises:
            BudgetError: One channel in every layer exceeds the budget.
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
