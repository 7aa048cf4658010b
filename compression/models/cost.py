"""What one forward pass of one example costs: traced for every device alike, in milliseconds for one that was measured.

`cost_of` runs the model once and writes down what passes: operations, bytes read and written, and how many bytes are
held at the worst moment. Nothing is timed, so the same model has the same cost everywhere.

Milliseconds need the device. `fedpress probe` times a few reference models there and fits

    latency = a * calls + b * convolutions + c * FLOPs of convolutions + d * FLOPs of matrix products + e * bytes moved

with a, ..., e >= 0 by least squares of relative errors. The five numbers are a `DeviceSpeed`; with them a server can
tell how long a model will take that the device has never seen. It is the roofline's idea (S. Williams, A. Waterman,
D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", CACM 52(4), 2009) with a
sum in place of the maximum, and a price for each call, which is most of what a small model costs; a convolution's call
costs several times that of any other. How far predictions are off is measured: docs/results/students.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.pruning import structural


@dataclass(frozen=True)
class Cost:
    """Of one forward pass of one example, in evaluation mode.

    Attributes:
        parameters: How many the model has, tied ones once.
        flops: As `structural.flops_of` counts them.
        convolution_flops: Those among them that are convolutions.
        memory_bytes: Weights and buffers, and the most that inputs, activations and answers take at any moment. What a
            kernel needs for itself, and the program around the model, come on top.
        moved_bytes: Read and written by all calls.
        calls: Operations on tensors that compute something; views and allocations are not counted.
        convolutions: Those among them that are convolutions.
    """

    parameters: int
    flops: int
    convolution_flops: int
    memory_bytes: int
    moved_bytes: int
    calls: int
    convolutions: int

    @property
    def units(self) -> tuple[float, ...]:
        """What a `DeviceSpeed` has a price for, in its order."""
        others, matrix = self.calls - self.convolutions, self.flops - self.convolution_flops
        return (
            float(others), float(self.convolutions), self.convolution_flops / 1e6, matrix / 1e6, self.moved_bytes / 1e6,
        )  # fmt: skip

    def latency_ms(self, speed: DeviceSpeed) -> float:
        """The predicted milliseconds on a device of this speed.

        >>> speed = DeviceSpeed(0.01, convolution_call_ms=0.03, convolution_ms=0.02, matrix_ms=0.05, moved_ms=0.1)
        >>> round(Cost(0, flops=3_000_000, convolution_flops=2_000_000, memory_bytes=0, moved_bytes=500_000, calls=4,
        ...     convolutions=1).latency_ms(speed), 3)
        0.2
        """
        return float(sum(rate * units for rate, units in zip(speed.rates, self.units, strict=True)))


def cost_of(model: nn.Module, example_input: Tensor) -> Cost:
    """Trace one forward pass.

    >>> cost_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(16, 4))
    Cost(parameters=58, flops=96, convolution_flops=0, memory_bytes=312, moved_bytes=384, calls=3, convolutions=0)

    Args:
        model: On the CPU; run in evaluation mode, left as it is.
        example_input: A batch as the model is called with, (N, ...); the first is taken.
    """
    example = example_input[:1].detach().clone()
    trace = _Trace(example)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), trace:
            model(example)
    finally:
        for module, training in modes.items():
            module.training = training
    stored = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return Cost(
        parameters=structural.parameters_of(model),
        flops=structural.flops_of(model, example),
        convolution_flops=trace.convolution_flops,
        memory_bytes=sum(_bytes(tensor) for tensor in stored.values()) + trace.peak,
        moved_bytes=trace.moved,
        calls=trace.calls,
        convolutions=trace.convolutions,
    )


def fit(costs: Sequence[Cost], latencies_ms: Sequence[float], weights: Sequence[float] | None = None) -> DeviceSpeed:
    """Return the speed that explains measured latencies best: least squares of relative errors, no rate below 0.

    Args:
        costs: Of at least two models.
        latencies_ms: As many, each above 0.
        weights: As many, above 0: how much the error of each counts. None: all alike.

    Raises:
        ValueError: There are too few, or a latency is not above 0.
    """
    if len(costs) != len(latencies_ms) or len(costs) < 2 or not min(latencies_ms, default=0) > 0:
        raise ValueError(f"expected two or more models and a latency above 0 of each, got {len(costs)}: {latencies_ms}")
    roots = np.sqrt(np.ones(len(costs)) if weights is None else np.array(weights))
    rows = np.array([cost.units for cost in costs]) * (roots / np.array(latencies_ms))[:, None]
    best, least = np.zeros(rows.shape[1]), math.inf
    # Non-negative least squares by trying which rates are zero: with five there are 31 ways.
    for count in range(1, rows.shape[1] + 1):
        for chosen in map(list, combinations(range(rows.shape[1]), count)):
            rates = np.linalg.lstsq(rows[:, chosen], roots, rcond=None)[0]
            error = float(np.square(rows[:, chosen] @ rates - roots).sum())
            if rates.min() >= 0 and error < least - 1e-12:
                best, least = np.zeros(rows.shape[1]), error
                best[chosen] = rates
    return DeviceSpeed(*map(float, best))


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that pass."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.convolutions = self.moved = self.convolution_flops = self.peak = 0
        self._live: dict[Any, int] = {_storage(example): _bytes(example)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        taken, given = _tensors((args, kwargs)), _tensors(answer)
        known = {_storage(tensor) for tensor in taken}
        fresh = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in given}
        fresh = {storage: size for storage, size in fresh.items() if storage not in known}
        if taken and (fresh or func._schema.is_mutable):
            self.calls += 1
            self.moved += sum(_bytes(tensor) for tensor in {id(t): t for t in [*taken, *given]}.values())
        if func._overloadpacket is torch.ops.aten.convolution:
            self.convolutions += 1
            self.convolution_flops += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=answer))
        # Tensors go once nothing refers to them, at a moment that only depends on the model's own code.
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()} | fresh
        self.peak = max(self.peak, sum(self._live.values()))
        return answer


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> Any:
    """A key of the tensor's memory, which does not keep it alive."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
