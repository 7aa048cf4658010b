"""The student for a budget: the teacher, pruned until it fits. It starts from the teacher's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from fedpress.compression.models import cost
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.cost import DeviceSpeed
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantize import Quantization

KINDS = ("parameters", "bundle_bytes", "flops", "memory_bytes", "latency_ms")
"""What a budget may be of; these are its fields."""
UNITS = {
    "parameters": "parameters",
    "bundle_bytes": "bundle bytes",
    "flops": "FLOPs a forward pass",
    "memory_bytes": "bytes of memory at run time",
    "latency_ms": "ms a forward pass on the device measured",
}


@dataclass(frozen=True)
class Budget:
    """What a student may cost, in one of five ways.

    >>> Budget(parameters=0.25).kind
    'parameters'
    >>> Budget(parameters=0.25, flops=20_000)
    Traceback (most recent call last):
    ValueError: a budget is one of its five kinds, got parameters=0.25, flops=20000

    Attributes:
        parameters: The most parameters: a whole number, or as a float the fraction of the teacher's, in (0, 1].
        bundle_bytes: The largest download file, all of it counted.
        flops: The most operations of one forward pass of one example (`structural.flops_of`).
        memory_bytes: The most that weights, inputs and activations take at any moment of it (`cost.Cost`).
        latency_ms: The most milliseconds that it is predicted to take on a device with `device`'s speed.
        device: For `latency_ms`: what `fedpress probe` measured there.
        quantization: For `bundle_bytes`: how the file's weights are written.
    """

    parameters: int | float | None = None
    bundle_bytes: int | None = None
    flops: int | None = None
    memory_bytes: int | None = None
    latency_ms: float | None = None
    device: DeviceSpeed | None = None
    quantization: Quantization = quantize.DEFAULTS

    def __post_init__(self) -> None:
        given = {kind: getattr(self, kind) for kind in KINDS if getattr(self, kind) is not None}
        if len(given) != 1:
            found = ", ".join(f"{kind}={value}" for kind, value in given.items()) or f"none of {', '.join(KINDS)}"
            raise ValueError(f"a budget is one of its five kinds, got {found}")
        if isinstance(self.parameters, float) and not 0 < self.parameters <= 1:
            raise ValueError(f"parameters as a fraction of the teacher's must be in (0, 1], got {self.parameters}")
        for kind, value in given.items():
            if isinstance(value, int) and kind != "latency_ms" and value < 1:
                raise ValueError(f"a budget must be at least 1, got {kind}={value}")
        if self.latency_ms is not None and not 0 < self.latency_ms < math.inf:
            raise ValueError(f"latency_ms must be above 0, got {self.latency_ms}")
        if (self.device is None) != (self.latency_ms is None):
            raise ValueError(
                f"latency_ms and device go together, got latency_ms={self.latency_ms} and device={self.device}: whose"
                " milliseconds? `fedpress probe --json FILE` measures a device"
            )

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is of."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def most(self, teacher: nn.Module) -> float:
        """The most that a student of this teacher may cost, in the budget's unit."""
        if isinstance(self.parameters, float):
            return int(self.parameters * structural.parameters_of(teacher))
        return float(getattr(self, self.kind))

    def cost_of(self, model: nn.Module, example_input: Tensor) -> float:
        """What a model costs, in the budget's unit; of a bundle, the most that it can come to.

        Args:
            example_input: A batch as the model is called with, (N, ...).
        """
        if self.parameters is not None:
            return structural.parameters_of(model)
        if self.bundle_bytes is not None:
            return writer.largest_bytes(model, example_input, self.quantization)
        if self.flops is not None:
            return structural.flops_of(model, example_input)
        found = cost.cost_of(model, example_input)
        return found.memory_bytes if self.device is None else self.device.latency_ms(found)


def student_of(
    teacher: nn.Module, example_input: Tensor, budget: Budget, criterion: Criterion = importance.DEFAULT
) -> nn.Module:
    """Return the largest pruned version of the teacher within the budget, not yet distilled.

    A budget of bytes is met by the file without its entropy coding, whose length does not depend on the weights: the
    file as it is served, after distillation, can only be shorter.

    Args:
        teacher: The model to prune; untouched.
        example_input: A batch as the teacher is called with, (N, ...).
        budget: What the student may cost.
        criterion: What is removed first.

    Raises:
        BudgetError: Even one channel in every layer is too much.
        PruneError: The model cannot be pruned.
    """
    most = budget.most(teacher)
    return structural.prune_while(
        teacher,
        example_input,
        lambda student: budget.cost_of(student, example_input) <= most,
        f"{most:,.10g} {UNITS[budget.kind]}",
        criterion=criterion,
    )
