"""Checks of a scenario's model and of a step of training it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedpress.client.training import local_steps
from fedpress.client.training import train as local
from fedpress.compression.models import batches, checkpointing, hidden_matrices, trainable
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.outputs import fitted
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.task import IGNORED, Task, usable
from fedpress.simulations.runs import check_texts as texts
from fedpress.simulations.runs.check_texts import CheckError
from fedpress.simulations.runs.workload import Workload

HIGH_RATE = 0.05
"""Learning rate above which AdamW hardly ever works."""


def initial_model(workload: Workload) -> nn.Module:
    """Return the initial model, which is whole and finite."""
    task = workload.task
    with reproducible(0), texts.by_task(task, "model()"):
        made = task.model()
    if not isinstance(made, nn.Module):
        raise CheckError(f"task {task.name!r}: model() returned a {type(made).__name__}, expected a torch.nn.Module")
    if isinstance(made, torch.jit.ScriptModule):
        raise CheckError(
            f"task {task.name!r}: model() returned a {type(made).__name__}, expected the module that was compiled: what"
            " TorchScript makes of one is trained through copies of its parameters; script what is delivered"
        )
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        if is_lazy(tensor):
            raise CheckError(
                f"task {task.name!r}: parameter {name!r} has no shape yet, as of a lazy layer; call the model once on"
                " an example in model()"
            )
        if tensor.device.type != "cpu":
            likely = (
                "it holds no numbers there: make the model without torch.device('meta') or init_empty_weights; weights"
                " of a file are named in the scenario, `base` or `init`"
                if tensor.is_meta
                else "training.device moves it there"
            )
            raise CheckError(
                f"task {task.name!r}: {name!r} of model() is on device {tensor.device}, expected the CPU; {likely}"
            )
    _check_weights(task, made)
    _check_memory(task, made)
    with texts.by_task(task, "the initial model"):
        model = workload.fresh_model()
    _check_weights(task, model)
    return model


def _check_weights(task: Task, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckError(
                f"task {task.name!r}: parameter {name!r} of the initial model holds NaN or infinity"
                + ("" if parameter.requires_grad else "; a constant is a buffer: register_buffer(...)")
            )


def _check_memory(task: Task, model: nn.Module) -> None:
    """Check that no two trained parameters share memory, unless they are one (tied) parameter."""
    storages: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            storages.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))
    for sharing in storages.values():
        if len(sharing) == 1:
            continue
        unit = min(parameter.element_size() for _, parameter in sharing)
        taken = torch.zeros(sharing[0][1].untyped_storage().nbytes() // unit, dtype=torch.bool)
        for name, parameter in sharing:
            wide = parameter.element_size() // unit
            steps = [step * wide for step in parameter.stride()]
            own = taken.as_strided((*parameter.shape, wide), (*steps, 1), parameter.storage_offset() * wide)
            if bool(own.any()):
                others = texts.some([other for other, _ in sharing if other != name], "parameter")
                raise CheckError(
                    f"task {task.name!r}: parameter {name!r} shares memory with {others}, without being one: a step of"
                    " one moves the other, and both are sent. Tie them as one parameter (self.second.weight ="
                    " self.first.weight; transposed: functional.linear(x, self.first.weight.t())), or .clone() one"
                )
            own.fill_(True)


def _unregistered(model: nn.Module) -> Iterator[str]:
    """Yield the names of layers and parameters in lists and dictionaries, which torch does not look into."""
    known = {id(parameter) for parameter in model.parameters()}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                own = list(part.parameters()) if isinstance(part, nn.Module) else [part]
                if any(isinstance(p, nn.Parameter) and p.requires_grad and id(p) not in known for p in own):
                    yield f"{prefix}{'.' if prefix else ''}{attribute}[{key!r}]"


def trained(workload: Workload, model: nn.Module) -> Iterator[str]:
    """Yield notes on what is trained, and on a rate that is another optimizer's."""
    settings, layout = workload.training, workload.layout
    if hidden_ones := list(_unregistered(model)):
        yield (
            f"{texts.some(hidden_ones, 'layer')} in a list or a dict, where torch does not look: not among the model's"
            " parameters, so neither trained nor sent. nn.ModuleList, ModuleDict and ParameterList are for that"
        )
    if workload.scenario.trainable is not None:
        names = [spec.name for spec in layout.parameters]
        whole = sum(p.numel() for p in model.parameters())
        yield f"trainable: {texts.some(names, 'parameter')}, {layout.size:,} of {whole:,} numbers"
        if not layout.frozen:
            yield "trainable: the patterns match every parameter, so nothing is frozen"
    if settings.optimizer != "sgd" and settings.rate > HIGH_RATE:
        yield (
            f"training.learning_rate: {settings.rate:g} is a rate for sgd; {settings.optimizer} takes 0.0001 to 0.01 as"
            " a rule"
        )
    if settings.optimizer == "muon":
        rows = workload.examples(0).take(np.arange(1))
        with reproducible(0), texts.by_task(workload.task, "a forward pass on an example of part 'train'"):
            batch = model_inputs.first(rows.inputs)
            hidden = hidden_matrices.names(model, lambda: _loss(workload.task, model, batch, rows.targets))
        others = len(layout.parameters) - len(hidden)
        which = texts.some(sorted(hidden), "hidden weight") if hidden else "nothing, as no matrix is hidden"
        yield f"training.optimizer: Muon steps {which}; AdamW steps {others} other parameters"


def _loss(task: Task, model: nn.Module, batch: Batch, targets: Tensor) -> Tensor:
    outputs = model_inputs.call(model, batch)
    return task.loss(outputs, fitted(targets, outputs, batch))


def clients(workload: Workload, model: nn.Module) -> Iterator[str]:
    """Yield notes on clients with few examples; batch normalization needs two values a channel."""
    frozen = trainable.frozen_statistics(model)  # which normalize by their running statistics
    training = workload.training
    norms = {name: layer for name, layer in batches.normalizing(model).items() if name not in frozen}
    sizes = [len(part) for part in workload.parts]
    targets = workload.task.data().train.targets
    if not targets.is_floating_point():
        idle = [c for c, part in enumerate(workload.parts) if bool((targets[torch.from_numpy(part)] == IGNORED).all())]
        if idle:
            yield f"{texts.some(idle, 'client')} with no target in any example: nothing is learned there"
    if not norms:
        return
    single = model_inputs.first(workload.task.data().train.inputs)
    alone = next((name for name, layer in norms.items() if _cannot_train_on(model, layer, single)), None)
    if alone is None:
        return
    layer, lonely = norms[alone], [client for client, size in enumerate(sizes) if size == 1]
    what = f"layer {alone!r} ({type(layer).__name__})"
    if training.batch_size == 1:
        raise CheckError(
            f"training.batch_size: with 1, {what} has one value a channel, of which there is no variance; take 2 or"
            " more"
        )
    if lonely and getattr(layer, "running_mean", None) is None:
        if len(lonely) == len(sizes):
            raise CheckError(f"every client has one example, which {what} cannot normalize; use fewer clients")
        which = texts.some(lonely, "client")
        yield f"{which} with one example, which {what} cannot normalize: their replies are refused"
    elif lonely:
        which = texts.some(lonely, "client")
        yield f"{which} with one example: there {what} uses its running statistics in training, too"
    rest = [c for c, size in enumerate(sizes) if size > training.batch_size and size % training.batch_size == 1]
    if rest:
        yield f"{texts.some(rest, 'client')} whose last batch of one example joins the one before, for {what}"


def _cannot_train_on(model: nn.Module, layer: nn.Module, one: Batch) -> bool:
    """Return whether a layer of batch normalization gets one value a channel from one example, or cannot take one."""
    seen: list[bool] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel() == given[0].shape[1]))
    try:
        with evaluating(model):
            model_inputs.call(model, one)
    except ValueError:  # without running statistics, in evaluation mode as well
        return True
    finally:
        handle.remove()
    return any(seen)


def step(workload: Workload, model: nn.Module) -> Iterator[str]:
    """Try a step of training on a batch of the first client; yield notes on parameters that it does not reach."""
    task, settings = workload.task, workload.training
    data = workload.examples(0)
    rows = data.take(np.arange(min(settings.batch_size, len(data.targets))))
    device = usable(settings.device)
    tried = workload.fresh_model().to(device)
    local.in_training_mode(tried)
    again = checkpointing.checkpointing(tried) if settings.gradient_checkpointing else nullcontext()
    debug = torch.get_deterministic_debug_mode()
    with reproducible(0), batches.lone_examples(tried):
        torch.set_deterministic_debug_mode("error")  # as clients train
        try:
            with texts.by_task(task, "training on a batch of part 'train'"):
                with local_steps.autocast(settings, device), again:
                    batch = model_inputs.to(model_inputs.take(rows.inputs, slice(None)), device)
                    value = _loss(task, tried, batch, rows.targets.to(device))
                if not value.requires_grad:
                    raise CheckError(
                        f"task {task.name!r}: the loss does not depend on any parameter that is trained; are all frozen"
                        " (requires_grad), or does forward leave torch (numpy, .detach(), .item())?"
                    )
                torch.autograd.backward(value)
                value = value.detach()
        finally:
            torch.set_deterministic_debug_mode(debug)
    if not bool(torch.isfinite(value)):
        if not rows.targets.is_floating_point() and bool((rows.targets == IGNORED).all()):
            return
        raise CheckError(
            f"task {task.name!r}: the loss of the initial model on a batch of part 'train' is {float(value)} in"
            " training mode, expected a number"
        )
    named = dict(tried.named_parameters())
    for name, parameter in named.items():
        if parameter.grad is None:
            continue
        gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        if not bool(torch.isfinite(gradient).all()):
            raise CheckError(
                f"task {task.name!r}: the first gradient of parameter {name!r} holds NaN or infinity, though the loss"
                f" is {float(value):g}; is there a root, a logarithm or a division by zero in the model or the loss?"
            )
    idle = [name for name, parameter in named.items() if parameter.requires_grad and parameter.grad is None]
    if len(idle) == sum(parameter.requires_grad for parameter in named.values()):
        raise CheckError(
            f"task {task.name!r}: the loss has a gradient, but by none of the {len(idle)} parameters that are trained;"
            " are other tensors trained in their place, such as copies or weights that are no parameters?"
        )
    if idle:
        which = texts.some(idle, "parameter")
        yield f"{which} without a gradient: the loss does not depend on it, and it never changes"
