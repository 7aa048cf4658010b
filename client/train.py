"""Local training with torch: SGD over a client's own examples."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fedpress.client.settings import Training
from fedpress.compression.models import batch_norm, batches
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.outputs import Outputs, fitted
from fedpress.compression.models.task import IGNORED, Examples, has_target, usable


def deterministic(seed: int) -> None:
    """Seed torch, numpy and random, and let torch use deterministic kernels on one thread.

    One thread whatever the number of workers, as sums differ between one thread and two.
    """
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True), without importing the compiler
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def train(
    model: nn.Module,
    examples: Examples,
    loss: Callable[[Outputs, Tensor], Tensor],
    settings: Training,
    seed: int,
    flags: Mapping[str, NDArray[np.bool_]] | None = None,
    scored: Callable[[Tensor], Tensor] = has_target,
) -> float:
    """Train `model` in place and return the mean loss over the answers seen, NaN if no target counts.

    Law: a weight that is zero and outside the mask stays zero, whatever the optimizer: its gradient is set to zero.

    With batch normalization a last batch of one example joins the one before (`batches`). A batch in which no place has
    a target, and whose mean loss is hence not a number, is left out.

    Args:
        model: holds the initial weights; afterwards the trained ones.
        examples: inputs (N, ...) and targets (N,) or (N, L), N >= 1.
        loss: mean loss over a batch.
        settings: batch size, learning rate and the like.
        seed: of the order of the examples, and of all that the model draws.
        flags: mask of a parameter by its name, in its shape (`flatten.flags`); others are trained whole.
        scored: which targets count (`Task.scored`): a batch's loss has their number as its weight in the mean.

    Raises:
        ValueError: there are no examples, or none has a target.
        DeviceError: a CUDA device is asked for and there is none.
    """
    count = len(examples.targets)
    if count == 0:
        raise ValueError("a client needs at least one example to train on, and has none")
    device = usable(settings.device)
    deterministic(seed)
    model.to(device).train()
    anchor = [p.detach().clone() for p in model.parameters()] if settings.proximal_mu else []
    step = _sgd(list(model.parameters()), settings)
    masked = [
        (parameter, torch.from_numpy(flags[name]).to(device))
        for name, parameter in model.named_parameters()
        if flags and name in flags
    ]
    order = torch.Generator().manual_seed(seed)
    total, seen, spare, unscored = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(4))
    with batches.lone_examples(model):
        for batch in _batches(count, settings, order, model):
            inputs, targets = examples.batch(batch)
            inputs = model_inputs.to(inputs, device)
            model.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                outputs = model_inputs.call(model, inputs)
                value = loss(outputs, fitted(targets.to(device), outputs, inputs))
            answers = int(scored(examples.targets[batch]).sum())
            if not answers and not torch.isfinite(value):
                continue  # the mean over no place at all
            objective = value
            for parameter, start in zip(model.parameters(), anchor, strict=False):
                objective = objective + settings.proximal_mu / 2 * (parameter - start).square().sum()
            objective.backward()  # type: ignore[no-untyped-call]
            for parameter, present in masked:
                if parameter.grad is not None:
                    parameter.grad.mul_(present)
            step()
            if answers:
                total += value.detach().double() * answers
                seen += answers
            else:
                spare += value.detach().double() * len(batch)
                unscored += len(batch)
    if not seen:
        total, seen = spare, unscored
    if not seen:
        raise ValueError(f"none of the {count} examples of this client has a target: all are {IGNORED}")
    model.to("cpu")
    return float(total / seen)


def running_statistics(model: nn.Module, examples: Examples, settings: Training) -> dict[str, NDArray[Any]]:
    """Return the running means and variances of a model on a client's examples, by name (`batch_norm.measure`).

    Args:
        model: The model, moved to the settings' device and back.
        examples: As for `train`.
        settings: Device.

    Raises:
        DeviceError: A CUDA device is asked for and there is none.
    """
    device = usable(settings.device)
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    measured = batch_norm.measure(model.to(device), examples.inputs)
    model.to("cpu")
    return measured


def gradient(
    model: nn.Module,
    examples: Examples,
    loss: Callable[[Outputs, Tensor], Tensor],
    settings: Training,
    seed: int,
    scored: Callable[[Tensor], Tensor] = has_target,
) -> dict[str, NDArray[np.float32]]:
    """Return the gradient of the mean loss over all examples by name of the parameter, those outside a mask too.

    Args:
        model: a disposable copy: its gradients and running statistics change.
        examples: as for `train`.
        loss: mean loss over a batch.
        settings: batch size and device.
        seed: of all that the model draws.
        scored: which targets count (`Task.scored`).

    Raises:
        DeviceError: a CUDA device is asked for and there is none.
    """
    device = usable(settings.device)
    deterministic(seed)
    model.to(device).train()
    model.zero_grad()
    answers = int(scored(examples.targets).sum())
    with batches.lone_examples(model):
        for batch in batches.split(torch.arange(len(examples.targets)), settings.batch_size, model):
            inputs, targets = examples.batch(batch)
            inputs = model_inputs.to(inputs, device)
            if in_batch := int(scored(targets).sum()):
                outputs = model_inputs.call(model, inputs)
                value = loss(outputs, fitted(targets.to(device), outputs, inputs))
                (value * (in_batch / answers)).backward()  # type: ignore[no-untyped-call]
    model.to("cpu")
    return {
        name: np.zeros(tuple(parameter.shape), np.float32) if parameter.grad is None else parameter.grad.float().numpy()
        for name, parameter in model.named_parameters()
    }


def _sgd(parameters: list[nn.Parameter], settings: Training) -> Callable[[], None]:
    """Return a function that steps the parameters by their gradients, as `torch.optim.SGD` does.

    That class imports torch's compiler: a second of a processor and 70 MB in each process that trains.
    """
    velocities: dict[int, Tensor | None] = {}

    @torch.no_grad()
    def step() -> None:
        gradients = {index: parameter.grad for index, parameter in enumerate(parameters) if parameter.grad is not None}
        buffers = [velocities.get(index) for index in gradients]
        sgd(
            [parameters[index] for index in gradients],
            list(gradients.values()),
            buffers,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        velocities.update(zip(gradients, buffers, strict=True))

    return step


def _batches(count: int, settings: Training, order: torch.Generator, model: nn.Module) -> list[Tensor]:
    """Return the index batches of the whole training, shuffled anew every epoch."""

    def one_pass() -> Sequence[Tensor]:
        return batches.split(torch.randperm(count, generator=order), settings.batch_size, model)

    if settings.steps is None:
        return [batch for _ in range(settings.epochs or 1) for batch in one_pass()]
    chosen: list[Tensor] = []
    while len(chosen) < settings.steps:
        chosen.extend(one_pass())
    return chosen[: settings.steps]
