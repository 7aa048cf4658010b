"""Speed of this device, measured in a few seconds without a server and without data.

`measure` times a matrix product, a convolution and a set of reference models, and fits a `DeviceSpeed` to them
(`compression/models/cost.py`), with which a server can make students for a budget of milliseconds. Models of the task
itself may be measured, too: the fit then covers their kind.

A latency is the least of several runs, as the standard library's `timeit` advises: what exceeds it is other work of
the machine, not the model.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pydantic
import torch
from torch import nn

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import cost
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.cost import Cost
from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.reproducible import reproducible

RUNS = 15
"""Timed runs of a model; the quickest counts."""
RUN_SECONDS = 0.002
"""A run repeats the forward pass until it has taken this long."""
OWN_WEIGHT = 100.0
"""Weight in the fit of a task's own model; that of a reference model is 1."""


class ProbeError(FedpressError, ValueError):
    """A file is not what `fedpress probe --json FILE` wrote."""


@dataclass(frozen=True)
class Timed:
    """A model, the cost of a forward pass of one example, and its latency here.

    Attributes:
        name: Name of the model.
        cost: Traced cost.
        measured_ms: Measured latency, in milliseconds.
        predicted_ms: Latency by the fitted speed, in milliseconds.
        own: Whether it is a task's own model, not a reference model.
    """

    name: str
    cost: Cost
    measured_ms: float
    predicted_ms: float
    own: bool = False

    @property
    def error(self) -> float:
        """Relative error of the prediction; above 0 where it is too high."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Probe:
    """Measurements of a device.

    Attributes:
        processor: Name of the processor, as the system gives it.
        cores: Cores that this process may use.
        threads: Threads of torch in everything that was timed.
        memory_bytes: Memory of the machine; 0 where the system does not say.
        available_bytes: Memory free for a new program; 0 where the system does not say.
        matrix_gflops: 10^9 FLOPs a second of a product of two 512 x 512 matrices.
        convolution_gflops: The same of a 3x3 convolution of 64 to 64 channels on 32 x 32 pixels.
        speed: Speed fitted to the models below.
        models: Reference models, and those that were given.
        tier: Tier of this device by its own measurements; empty: none was determined.
    """

    processor: str
    cores: int
    threads: int
    memory_bytes: int
    available_bytes: int
    matrix_gflops: float
    convolution_gflops: float
    speed: DeviceSpeed
    models: tuple[Timed, ...]
    tier: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return this as plain data."""
        return asdict(self)


def measure(models: Mapping[str, tuple[nn.Module, Batch]] | None = None, threads: int = 1) -> Probe:
    """Measure this device.

    Args:
        models: A task's own models by name, each with a batch (N, ...) to call it with; they are part of the fit.
        threads: Threads of torch. A small model is no faster on two.
    """
    before = torch.get_num_threads()
    given = dict(models or {})
    with reproducible(0):
        chosen = references() | given
        torch.set_num_threads(threads)
        try:
            a, b = torch.rand(512, 512), torch.rand(512, 512)
            matrix = seconds_of(lambda: a @ b)
            layer, image = nn.Conv2d(64, 64, 3, padding=1), torch.rand(1, 64, 32, 32)
            convolution = seconds_of(lambda: layer(image))
            costs = [cost.cost_of(model, example) for model, example in chosen.values()]
            milliseconds = [latency_ms(model, example) for model, example in chosen.values()]
        finally:
            torch.set_num_threads(before)
    speed = cost.fit(costs, milliseconds, [OWN_WEIGHT if name in given else 1.0 for name in chosen])
    whole, available = _memory()
    return Probe(
        processor=platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        memory_bytes=whole,
        available_bytes=available,
        matrix_gflops=2 * 512**3 / matrix / 1e9,
        convolution_gflops=2 * 9 * 64 * 64 * 32 * 32 / convolution / 1e9,
        speed=speed,
        models=tuple(
            Timed(name, traced, measured, traced.latency_ms(speed), name in given)
            for name, traced, measured in zip(chosen, costs, milliseconds, strict=True)
        ),
    )


def latency_ms(model: nn.Module, example_input: Batch) -> float:
    """Return the milliseconds of a forward pass of one example, in evaluation mode, on torch's present threads.

    Args:
        model: The model; its modes are restored.
        example_input: A batch (N, ...) to call the model with; its first example is used.
    """
    example = model_inputs.mapped(model_inputs.first(example_input), lambda part: part.detach().clone())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return 1000 * seconds_of(lambda: model_inputs.call(model, example))
    finally:
        for module, training in modes.items():
            module.training = training


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the least seconds of `RUNS` runs of the work."""
    with torch.inference_mode():
        for _ in range(3):
            work()
        began = perf_counter()
        work()
        repeats = max(1, round(RUN_SECONDS / max(perf_counter() - began, 1e-7)))
        least = float("inf")
        for _ in range(RUNS):
            began = perf_counter()
            for _ in range(repeats):
                work()
            least = min(least, (perf_counter() - began) / repeats)
    return least


def references() -> dict[str, tuple[nn.Module, Batch]]:
    """Return models of several kinds and sizes, from microseconds to some milliseconds, each with an example."""
    models: dict[str, tuple[nn.Module, Batch]] = {}
    for width in (16, 64, 256, 1024):
        models[f"mlp of {width}"] = _mlp(width), torch.rand(1, 256)
    for side, width, kernel in (
        (8, 4, 3), (8, 16, 3), (16, 8, 3), (16, 32, 5), (28, 8, 5), (28, 8, 3), (28, 32, 3), (28, 32, 5), (32, 64, 3),
    ):  # fmt: skip
        name = f"cnn of {width}, {kernel}x{kernel}, on {side}x{side}"
        models[name] = _cnn(side, width, kernel), torch.rand(1, 1, side, side)
    return models


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def _cnn(side: int, width: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, 4 * width), nn.ReLU(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def read(path: Path | str) -> Probe:
    """Read a probe that `fedpress probe --json FILE` wrote.

    Raises:
        ProbeError: There is no such file, or it holds something else.
    """
    try:
        return pydantic.TypeAdapter(Probe).validate_json(files.read_regular(Path(path).expanduser(), files.MOST_TEXT))
    except OSError as error:
        raise ProbeError(f"cannot read {path}: {error.strerror}; `fedpress probe --json {path}` writes it") from None
    except ValueError as error:
        raise ProbeError(
            f"{path} is not what `fedpress probe --json FILE` writes ({str(error).splitlines()[0]}); measure again"
        ) from None


def tier_in(path: Path | str) -> str:
    """Return the tier that a saved probe names.

    Raises:
        ProbeError: As for `read`, or it names none.
    """
    if not (named := read(path).tier):
        raise ProbeError(f"{path} names no tier; `fedpress probe SCENARIO --json {path}` finds out which one it is")
    return named


def _memory() -> tuple[int, int]:
    """Return all memory and that free for a new program, in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
