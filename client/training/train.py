"""Local training with torch over a client's own examples."""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from logging import getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import deterministic as deterministic_settings

from fedpress.client.settings import Training
from fedpress.client.training import learning_rates, optimizers
from fedpress.client.training.local_steps import Passes, Stepping
from fedpress.compression.models import batch_norm, batches, checkpointing, computed, trainable
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.outputs import Outputs, fitted
from fedpress.compression.models.task import Examples, has_target, usable


def deterministic(seed: int) -> None:
    """Seed torch, numpy and random, and let torch use deterministic kernels on one thread.

    One thread whatever the number of workers, as sums differ between one thread and two.
    """
    deterministic_kernels()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def deterministic_kernels() -> None:
    """Let torch use deterministic kernels on one thread, without filling every new tensor with NaN first."""
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True), without importing the compiler
    # A twentieth of a transformer's step. torch makes it a property of the module, which type checkers do not see.
    deterministic_settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def train(
    model: nn.Module,
    examples: Examples,
    loss: Callable[[Outputs, Tensor], Tensor],
    settings: Training,
    seed: int,
    flags: Mapping[str, NDArray[np.bool_]] | None = None,
    scored: Callable[[Tensor], Tensor] = has_target,
    *,
    round: int = 1,
    rounds: int = 1,
    moments: dict[str, NDArray[Any]] | None = None,
) -> float:
    """Train `model` in place and return the mean loss over the answers seen, NaN if no target counts.

    Law: a weight that is zero and outside the mask stays zero, whatever the optimizer. A parameter with
    `requires_grad=False` stays as it is, and so do the running statistics of a layer that has no others: it normalizes
    by them, as in evaluation.

    With batch normalization a last batch of one example joins the one before (`batches`). A batch in which no place has
    a target, and whose mean loss is hence not a number, is left out.

    Args:
        model: holds the initial weights; afterwards the trained ones.
        examples: inputs (N, ...) and targets (N,) or (N, L), N >= 1.
        loss: mean loss over a batch.
        settings: batch size, optimizer, learning rate and the like.
        seed: of the order of the examples, and of all that the model draws.
        flags: mask of a parameter by its name, in its shape (`flatten.flags`); others are trained whole.
        scored: which targets count (`Task.scored`): a batch's loss has their number as its weight in the mean.
        round: number of the round, from 1, for the schedule of the learning rate.
        rounds: number of rounds of the run.
        moments: state of the optimizer (`optimizers.State`) after the round before, empty at first; afterwards that of
            this round. None: it begins from zero, and is dropped.

    Raises:
        ValueError: there are no examples, or none has a target.
        DeviceError: a CUDA device is asked for and there is none.
        NoBlocks: gradient checkpointing is asked for, and the model has nothing to compute again.
        PrecisionError: the model cannot be trained in float16.
    """
    count = len(examples.targets)
    if count == 0:
        raise ValueError("a client needs at least one example to train on, and has none")
    device = usable(settings.device)
    deterministic(seed)
    in_training_mode(model.to(device))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    anchor = [p.detach().clone() for p in trained] if settings.proximal_mu else []
    masked = [
        (parameter, torch.from_numpy(flags[name]).to(device))
        for name, parameter in model.named_parameters()
        if flags and name in flags and parameter.requires_grad
    ]
    passes = Passes(model, examples, loss, settings, scored, device)
    optimizer = optimizers.create(model, settings, passes.sample)
    if moments:
        _take_up(optimizer, moments, flags or {}, device)
    stepping = Stepping(optimizer, trained, masked, settings, device)
    plan = _batches(count, settings, torch.Generator().manual_seed(seed), model)
    again = checkpointing.checkpointing(model) if settings.gradient_checkpointing else nullcontext()
    with batches.lone_examples(model), again:
        for number, batch in enumerate(plan):
            model.zero_grad()
            if not passes.add_gradients(batch, stepping.scaler):
                continue  # the mean over no place at all
            if anchor:
                penalty = torch.stack(
                    [(p - start).square().sum() for p, start in zip(trained, anchor, strict=True)]
                ).sum()
                stepping.scaler.scale(settings.proximal_mu / 2 * penalty).backward()  # type: ignore[no-untyped-call]
            stepping.take(settings.rate * learning_rates.factor(settings, number, len(plan), round, rounds))
    stepping.say_skipped(len(plan))
    if moments is not None:
        moments.clear()
        moments.update({name: tensor.detach().cpu().numpy() for name, tensor in optimizer.state().items()})
    mean = passes.mean_loss()
    computed.detach(model)
    model.to("cpu")
    return mean


def in_training_mode(model: nn.Module) -> None:
    """Set a model to train, but for layers with running statistics that are frozen: they stay in evaluation mode."""
    model.train()
    for layer in trainable.frozen_statistics(model).values():
        layer.eval()


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
    deterministic_kernels()
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
    in_training_mode(model.to(device))
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


def _take_up(
    optimizer: optimizers.Optimizer,
    moments: Mapping[str, NDArray[Any]],
    flags: Mapping[str, NDArray[np.bool_]],
    device: torch.device,
) -> None:
    """Give an optimizer the moments of the round before, but for entries that a new mask lacks; the log says so."""
    state: optimizers.State = {}
    cleared = 0
    for key, moment in moments.items():
        kept = np.array(moment)  # stepped in place
        present = flags.get(key.partition("/")[2])
        if present is not None and kept.shape == present.shape:
            cleared += int(np.count_nonzero(kept[~present]))
            kept[~present] = 0
        state[key] = torch.from_numpy(kept).to(device)
    if cleared:
        getLogger("flwr").info("the mask has changed: %d moments of the optimizer begin from zero", cleared)
    optimizer.load(state)
    if others := moments.keys() - optimizer.state().keys():
        getLogger("flwr").warning(
            "%d moments in this client's state are of another optimizer, or of parameters that are not trained: they"
            " are dropped", len(others),
        )  # fmt: skip
