"""Cost of one forward pass of one example: device-independent by tracing, in milliseconds for a measured device.

`cost_of` runs the model once and records the operations, the bytes read and written, and the peak of bytes held.
Nothing is timed, so a model has the same cost everywhere.

Milliseconds depend on the device. `fedpress probe` times a few reference models there and fits

    latency = a * calls + b * convolutions + c * FLOPs of convolutions + d * FLOPs of matrix products + e * bytes moved

with a, ..., e >= 0 by least squares of relative errors. These five rates are a `DeviceSpeed`, from which a server
predicts the latency of a model that the device has never run. The model is the roofline (S. Williams, A. Waterman,
D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", CACM 52(4), 2009) with a
sum in place of the maximum and a fixed time for each call, which dominates in small models; a convolution's call takes
several times as long as any other. Prediction errors are measured in docs/results/students.md.
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

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.reproducible import evaluating


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass of one example, in evaluation mode.

    Attributes:
        parameters: Number of the model's parameters, tied ones once.
        flops: Floating-point operations, as `structural.flops_of` counts them.
        convolution_flops: FLOPs of convolutions among them.
        memory_bytes: Weights, buffers, and the peak of inputs, activations and outputs. Workspaces of kernels and the
            memory of the program come on top.
        moved_bytes: Bytes read and written by all calls.
        calls: Tensor operations that compute something; views and allocations are not counted.
        convolutions: Convolutions among these calls.
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
        """Amounts that the rates of a `DeviceSpeed` multiply, in their order."""
        other_calls, matrix_flops = self.calls - self.convolutions, self.flops - self.convolution_flops
        millions = (self.convolution_flops / 1e6, matrix_flops / 1e6, self.moved_bytes / 1e6)
        return float(other_calls), float(self.convolutions), *millions

    def latency_ms(self, speed: DeviceSpeed) -> float:
        """Return the predicted latency on a device of this speed, in milliseconds.

        >>> speed = DeviceSpeed(0.01, convolution_call_ms=0.03, convolution_ms=0.02, matrix_ms=0.05, moved_ms=0.1)
        >>> round(Cost(0, flops=3_000_000, convolution_flops=2_000_000, memory_bytes=0, moved_bytes=500_000, calls=4,
        ...     convolutions=1).latency_ms(speed), 3)
        0.2
        """
        return float(sum(rate * units for rate, units in zip(speed.rates, self.units, strict=True)))


def cost_of(model: nn.Module, example_input: Batch) -> Cost:
    """Return the cost of one forward pass of one example, by tracing it.

    >>> cost_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(16, 4))
    Cost(parameters=58, flops=96, convolution_flops=0, memory_bytes=312, moved_bytes=384, calls=3, convolutions=0)

    Args:
        model: Model on the CPU; run in evaluation mode, left as it is.
        example_input: Batch of inputs, (N, ...), of which the first is used.
    """
    example = model_inputs.mapped(model_inputs.first(example_input), lambda part: part.detach().clone())
    trace = _Trace(example)
    with evaluating(model), trace:
        model_inputs.call(model, example)
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
    """Return the speed that explains measured latencies best: non-negative least squares of relative errors.

    Args:
        costs: Costs of at least two models.
        latencies_ms: Measured latency of each, above 0, in milliseconds.
        weights: Weight of the error of each, above 0; None: equal weights.

    Raises:
        ValueError: There are fewer than two models, or a latency is not above 0.
    """
    if len(costs) != len(latencies_ms) or len(costs) < 2 or not min(latencies_ms, default=0) > 0:
        raise ValueError(f"expected two or more models and a latency above 0 of each, got {len(costs)}: {latencies_ms}")
    roots = np.sqrt(np.ones(len(costs)) if weights is None else np.array(weights))
    rows = np.array([cost.units for cost in costs]) * (roots / np.array(latencies_ms))[:, None]
    best, least = np.zeros(rows.shape[1]), math.inf
    # Exact non-negative least squares by enumeration of the rates above zero: 31 subsets of five.
    for count in range(1, rows.shape[1] + 1):
        for chosen in map(list, combinations(range(rows.shape[1]), count)):
            rates = np.linalg.lstsq(rows[:, chosen], roots, rcond=None)[0]
            error = float(np.square(rows[:, chosen] @ rates - roots).sum())
            if rates.min() >= 0 and error < least - 1e-12:
                best, least = np.zeros(rows.shape[1]), error
                best[chosen] = rates
    return DeviceSpeed(*map(float, best))


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record of the operations that are dispatched: counts, bytes moved, and the peak of live bytes."""

    def __init__(self, example: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.convolutions = self.moved = self.convolution_flops = self.peak = 0
        self._live: dict[Any, int] = {_storage(part): _bytes(part) for part in model_inputs.named(example).values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        known = {_storage(tensor) for tensor in inputs}
        fresh = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in outputs}
        fresh = {storage: size for storage, size in fresh.items() if storage not in known}
        if inputs and (fresh or func._schema.is_mutable):
            self.calls += 1
            self.moved += sum(_bytes(tensor) for tensor in {id(t): t for t in [*inputs, *outputs]}.values())
        if func._overloadpacket is torch.ops.aten.convolution:
            self.convolutions += 1
            self.convolution_flops += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result))
        # A tensor is freed with its last reference, at a moment that depends on the model's code alone.
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()} | fresh
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> Any:
    """Return a key of the tensor's memory that does not keep it alive."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
