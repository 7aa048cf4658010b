"""`fedpress probe`: the speed of this device, and the tier of a scenario that it belongs to.

A device is of the largest tier whose student, made here from the task's untrained model, is within the device's limits:
measured milliseconds of a forward pass, memory, download.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from rich.filesize import decimal as size
from torch import Tensor, nn

from fedpress.client import probe
from fedpress.client.probe import Probe
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import cost
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.students.initial_student import start_of
from fedpress.simulations.runs import tier_workload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.scenario.students import Tier

FAMILY = (1.0, 0.5, 0.25, 0.1)
"""Fractions of channels at which the task's model is timed, so that predictions fit its architecture."""
MOST_LAYERS = 4
"""Most layers of which a version is timed where that layer alone stays wide."""
MODEL_COLUMNS = ("model", "parameters", "MFLOPs", "calls", "measured ms", "predicted ms", "off by")
TIER_COLUMNS = ("tier", "parameters", "bundle", "memory", "measured ms", "predicted ms", "")


class NoTierFits(FedpressError, ValueError):
    """This device is of none of the scenario's tiers."""


class Limits(NamedTuple):
    """Limits of this device; None: no limit, for memory what is free."""

    latency_ms: float | None = None
    memory_bytes: int | None = None
    bundle_bytes: int | None = None


class TierHere(NamedTuple):
    """Student of a tier on this device.

    Attributes:
        name: Of the tier.
        parameters, bundle_bytes, memory_bytes: Costs of the student; an upper bound of the bundle.
        measured_ms, predicted_ms: Milliseconds of a forward pass of one example.
        reasons: Limits that the student exceeds; empty: it fits.
    """

    name: str
    parameters: int
    bundle_bytes: int
    memory_bytes: int
    measured_ms: float
    predicted_ms: float
    reasons: tuple[str, ...]


def run(scenario: Scenario | None, limits: Limits, threads: int = 1) -> tuple[Probe, list[TierHere]]:
    """Measure this device; with a scenario, also on its task's model and its tiers' students.

    Args:
        scenario: The scenario; None: measure the device alone.
        limits: Limits of this device.
        threads: Threads of torch.

    Returns:
        The probe, which names the tier if one fits, and the tiers, the largest student first.

    Raises:
        BudgetError: A tier's budget cannot be met by the task's model.
        UnknownArchitecture: A tier names a student that the task does not have.
        TaskError: The task's data are absent.
    """
    if scenario is None:
        return probe.measure(threads=threads), []
    task = Workload(scenario).task
    example = model_inputs.first(task.data().proxy.inputs)
    with reproducible(scenario.seed):
        model = task.model()
    made = {
        tier.name: start_of(
            task,
            model,
            example,
            tier,
            tier_workload.start(tier),
            lambda _: importance.named(scenario.students.prune),
            quantization=scenario.students.quantize,
            seed=scenario.seed,
        )
        for tier in scenario.students.tiers
        if tier.removed_fraction is None
    }
    device = probe.measure({name: (version, example) for name, version in family(model, example).items()}, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tiers = [
            _tier(tier, made[tier.name], example, device, limits)
            for tier in scenario.students.tiers
            if tier.name in made
        ]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    tiers.sort(key=lambda tier: -tier.parameters)
    return replace(device, tier=next((tier.name for tier in tiers if not tier.reasons), "")), tiers


def family(model: nn.Module, example: Tensor) -> Mapping[str, nn.Module]:
    """Return versions of a task's model by name: from whole to small, and with layers of unequal widths.

    Args:
        model: Model of the task.
        example: One input, shape (1, ...).
    """
    pruner = structural.Pruner(model, example)
    layers = list(pruner.layers)
    if not layers:
        return {"the task's model": model}
    versions = {f"the task's, {part:.0%} of channels": pruner.keep(part) for part in FAMILY}
    for layer in layers[:MOST_LAYERS]:
        fractions = {name: 0.5 if name == layer else 0.12 for name in layers}
        versions[f"the task's, layer {layer} wide"] = pruner.keep(fractions)
    return versions


def _tier(tier: Tier, made: nn.Module, example: Tensor, device: Probe, limits: Limits) -> TierHere:
    costs, measured = cost.cost_of(made, example), probe.latency_ms(made, example)
    largest = writer.largest_bytes(made, example)
    most_ms = min((most for most in (tier.latency_ms, limits.latency_ms) if most is not None), default=None)
    most_memory = limits.memory_bytes if limits.memory_bytes is not None else device.available_bytes or None
    reasons = []
    if most_ms is not None and measured > most_ms:
        reasons.append(f"takes {measured:.3g} ms, at most {most_ms:g}")
    if most_memory is not None and costs.memory_bytes > most_memory:
        reasons.append(f"needs {size(costs.memory_bytes)} of memory, at most {size(most_memory)}")
    if limits.bundle_bytes is not None and largest > limits.bundle_bytes:
        reasons.append(f"is a download of {size(largest)}, at most {size(limits.bundle_bytes)}")
    return TierHere(
        name=tier.name,
        parameters=costs.parameters,
        bundle_bytes=largest,
        memory_bytes=costs.memory_bytes,
        measured_ms=measured,
        predicted_ms=costs.latency_ms(device.speed),
        reasons=tuple(reasons),
    )


def nothing_fits(tiers: Sequence[TierHere]) -> NoTierFits:
    """Return the error that names every tier and the limits that it exceeds."""
    reasons = "; ".join(f"{tier.name} {' and '.join(tier.reasons)}" for tier in tiers)
    return NoTierFits(
        f"this device is of none of the scenario's tiers: {reasons or 'it has none'}. Allow more, or give the"
        " scenario a smaller tier"
    )


def facts(device: Probe) -> list[tuple[str, str]]:
    """Return the figures of a device as rows of name and value."""
    speed = device.speed
    of_task = [timed for timed in device.models if timed.own] or device.models
    errors = sorted(abs(timed.error) for timed in of_task)
    return [
        ("processor", f"{device.processor}, {device.cores} cores, measured on {device.threads}"),
        ("memory", f"{size(device.memory_bytes)}, {size(device.available_bytes)} of it free"),
        ("matrix product", f"{device.matrix_gflops:.1f} GFLOP/s"),
        ("convolution", f"{device.convolution_gflops:.1f} GFLOP/s"),
        ("a call", f"{1000 * speed.call_ms:.2f} us, of a convolution {1000 * speed.convolution_call_ms:.2f} us"),
        (
            "10^6 FLOPs",
            f"{1000 * speed.convolution_ms:.2f} us of a convolution, {1000 * speed.matrix_ms:.2f} us of a product",
        ),
        ("a MB moved", f"{1000 * speed.moved_ms:.2f} us"),
        (
            "predictions",
            f"off by {errors[len(errors) // 2]:.0%} (median), at most {errors[-1]:.0%}, over {len(errors)} models",
        ),
    ]


def model_rows(device: Probe) -> list[tuple[str, ...]]:
    """Return the models that were timed, as rows under `MODEL_COLUMNS`."""
    return [
        (
            timed.name, f"{timed.cost.parameters:,}", f"{timed.cost.flops / 1e6:.3f}", str(timed.cost.calls),
            f"{timed.measured_ms:.4f}", f"{timed.predicted_ms:.4f}", f"{timed.error:+.0%}",
        )
        for timed in device.models
    ]  # fmt: skip


def tier_rows(tiers: Sequence[TierHere]) -> list[tuple[str, ...]]:
    """Return the tiers as rows under `TIER_COLUMNS`."""
    return [
        (
            tier.name, f"{tier.parameters:,}", size(tier.bundle_bytes), size(tier.memory_bytes),
            f"{tier.measured_ms:.4f}", f"{tier.predicted_ms:.4f}", "; ".join(tier.reasons) or "fits",
        )
        for tier in tiers
    ]  # fmt: skip
