"""Checks of a scenario before its first round: data, model, training, students, rounds.

`check` makes them in this order, in seconds, and raises an error that names the part; what is unusual but can be
trained is a note. Everything is tried on the real thing: the task's examples, a step of training with the scenario's
settings, an evaluation, the server's plan in a temporary folder. Nothing is forbidden that a task can do: labels
outside the outputs, NaN among the inputs or targets of -100 are errors only where its own loss cannot take them.
"""

from __future__ import annotations

import random
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedpress.client.training import local_steps
from fedpress.client.training import train as local
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import batches, checkpointing, hidden_matrices, trainable
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.inputs import Batch, Inputs, InputsError
from fedpress.compression.models.outputs import Outputs, fitted
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.task import IGNORED, Examples, Splits, Task, evaluate, usable
from fedpress.server import app as server
from fedpress.simulations.conditions import faults
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_students
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.tasks import fingerprint

ROWS = 4096
"""Examples that are looked at together for NaN."""
TRIED = 64
"""Most examples of a part that are put through the model."""
PIECE = 16
"""Of these at a time."""
HIGH_RATE = 0.05
"""Learning rate above which AdamW hardly ever works."""
NAMED = 5
"""Most clients, labels or parameters that a text names."""

_HERE = Path(__file__).resolve().parents[2]
INSTALLED = (
    *(_HERE / part for part in ("client", "compression", "server", "simulations")),
    *(
        Path(place).resolve()
        for name, place in sysconfig.get_paths().items()
        if name in ("stdlib", "purelib", "platlib")
    ),
)
"""Folders of code that is not the user's."""


class CheckError(FedpressError, ValueError):
    """Data, model and settings do not go together; the text names the part, what was given, and what is expected."""


class Checked(NamedTuple):
    """Result of the checks.

    Attributes:
        plan: The server's plan, made in a temporary folder that is gone.
        notes: What is unusual, though the run can go on with it.
    """

    plan: server.Plan
    notes: list[str]


MakePlan: TypeAlias = Callable[[Job, RunFolder], server.Plan]


def check(job: Job, make_plan: MakePlan) -> Checked:
    """Check a scenario before its first round.

    Args:
        job: Work of the scenario; what it loads stays loaded.
        make_plan: Makes the server's plan (`plan.plan`).

    Raises:
        FedpressError: The run would fail, or all of its rounds would be empty.
    """
    with _drawing(0):  # whatever the task draws, this process's generators stay as they are
        return _check(job, make_plan)


def _check(job: Job, make_plan: MakePlan) -> Checked:
    workload = job.whole
    scenario = workload.scenario
    usable(scenario.training.device)
    plan_students.signing_key(scenario.students)
    splits = _data(workload)
    notes = [*_targets_of_partition(workload, splits), *_rounds(workload)]
    model = _model(workload)
    notes += _trained(workload, model)
    for name, judged in _used_parts(scenario).items():
        notes += _part(workload.task, model, name, getattr(splits, name), judged)
    notes += _clients(workload, model)
    notes += _step(workload, model)
    part = getattr(splits, scenario.evaluation.split)
    with _by_task(workload.task, f"evaluating the model on part {scenario.evaluation.split!r}"):
        evaluate(workload.fresh_model(), workload.task, part.take(np.arange(min(len(part.targets), TRIED + 1))))
    return Checked(_plan(job, make_plan, splits, model), notes)


# ---- data ------------------------------------------------------------------------------------------------------------


def _data(workload: Workload) -> Splits:
    """Return the task's data, the same at every call and in every instance of the task."""
    choice = workload.scenario.task
    with _by_task(choice.name, "its constructor"):
        task = workload.task
    with _drawing(1), _by_task(task, "data()"):
        splits = task.data()
    if not isinstance(splits, Splits):
        raise CheckError(
            f"task {task.name!r}: data() returned a {type(splits).__name__}, expected Splits(train, proxy, validation,"
            " test)"
        )
    for name, part in splits._asdict().items():
        if not (isinstance(part, Examples) and isinstance(part.targets, Tensor)):
            given = (
                ", ".join(type(field).__name__ for field in part) if isinstance(part, tuple) else type(part).__name__
            )
            raise CheckError(
                f"task {task.name!r}: part {name!r} is {given}, expected Examples(inputs, targets) of torch tensors"
            )
        try:
            with _by_task(task, f"reading part {name!r}"):
                model_inputs.check(part.inputs)
        except InputsError as error:
            raise CheckError(f"task {task.name!r}: part {name!r}: {error}") from error
    for name in _used_parts(workload.scenario):
        inputs, targets = getattr(splits, name)
        if (number := model_inputs.count(inputs)) != len(targets):
            raise CheckError(
                f"part {name!r}: {number:,} inputs but {len(targets):,} targets, expected one target for each"
                " input; were only the inputs shuffled or cut?"
            )
        if not len(targets) and name != "proxy":  # of which students say better what they could do without
            raise CheckError(
                f"part {name!r}: got 0 examples, expected at least 1; is the hold-out larger than the data?"
            )
    expected = fingerprint.of(splits)
    with _drawing(2), _by_task(task, "data(), called again,"):
        again = fingerprint.of(task.data())
        other = again if workload.own_data else fingerprint.of(workload.another_task().data())
    if again != expected or other != expected:
        when = "at every call" if again != expected else "in every instance of the task"
        raise CheckError(
            f"task {task.name!r}: data() returns other examples {when}, so every process would train and evaluate on"
            " its own; seed what it draws (np.random.default_rng(0), torch.Generator().manual_seed(0)) and keep the"
            " result (functools.cached_property)"
        )
    return splits


def _used_parts(scenario: Scenario) -> dict[str, bool]:
    """Return the parts that a run reads, and whether it reads their labels."""
    students, tiers = scenario.students, bool(scenario.students.tiers)
    learn = tiers and students.data.data_free is None or scenario.teaching is not None or scenario.fusion is not None
    parts = {"train": True, scenario.evaluation.split: True}
    if tiers:
        parts |= {"validation": True, "test": True}
    if scenario.sparsity is not None and scenario.sparsity.initial is not None:
        parts["validation"] = True
    if learn:
        parts["proxy"] = parts.get("proxy", False) or bool(students.data.labels and tiers)
    return parts


def _targets_of_partition(workload: Workload, splits: Splits) -> Iterator[str]:
    """Partition the data, which raises where that cannot be done; yield nothing."""
    kind, targets = workload.scenario.partition.kind, splits.train.targets
    _check_targets("train", targets)
    if kind in ("dirichlet", "labels") and targets.is_floating_point() and not bool((targets == targets.round()).all()):
        raise CheckError(
            f"partition.kind: {kind!r} goes by labels, but the targets of part 'train' are {targets.dtype} such as"
            f" {float(targets.flatten()[0]):g}; use iid, or natural (by the task's own groups)"
        )
    _ = workload.parts
    yield from ()


def _part(task: Task, model: nn.Module, name: str, part: Examples, judged: bool) -> Iterator[str]:
    """Check that model and loss take the examples of a part; yield notes.

    Args:
        task: The task.
        model: Its model, with the initial weights.
        name: Of the part.
        part: Its examples.
        judged: Whether its labels are read.
    """
    if not len(part.targets):
        return  # the data say so where they are needed
    few = part.take(np.arange(min(2, len(part.targets))))
    try:
        model_inputs.check_arguments(model, model_inputs.take(few.inputs, slice(None)), "inputs")
    except InputsError as error:
        raise CheckError(f"task {task.name!r}: part {name!r}: {error}") from error
    _ = outputs_of(task, model, name, few)
    spoiled = _spoiled(part.inputs)
    if len(spoiled):
        rows = part.take(_two(spoiled[:TRIED].numpy(), len(part.targets)))
        outputs, targets = outputs_of(task, model, name, rows)
        with torch.no_grad(), _by_task(task, f"the loss of part {name!r}"):
            answers = torch.stack([tensor.sum() for tensor in model_outputs.tensors(outputs)])
            value = task.loss(outputs, targets) if judged else answers
        if not bool(torch.isfinite(value).all()):
            raise CheckError(
                f"part {name!r}: {len(spoiled):,} of {len(part.targets):,} inputs hold NaN or infinity, the first is"
                f" example {int(spoiled[0])}, and the model's loss of them is {float(value.sum())}; leave these out, or"
                " fill them in"
            )
        yield f"part {name!r}: {len(spoiled):,} inputs hold NaN or infinity; the model takes them"
    if judged:
        _labels(task, model, name, part)


def _check_targets(name: str, targets: Tensor) -> None:
    if len(bad := _not_finite(targets)):
        raise CheckError(f"part {name!r}: the target of example {int(bad[0])} is NaN or infinite ({len(bad):,} are)")


def _labels(task: Task, model: nn.Module, name: str, part: Examples) -> None:
    """Check that the loss takes every label that occurs."""
    targets = part.targets
    if targets.is_floating_point():
        bad = _not_finite(targets)
        if len(bad):
            raise CheckError(
                f"part {name!r}: the target of example {int(bad[0])} is NaN or infinite ({len(bad):,} are)"
            )
        chosen = np.arange(min(len(targets), TRIED))
    else:
        found = torch.unique(targets[targets != IGNORED])
        if not len(found):
            raise CheckError(f"part {name!r}: no example has a target, all are {IGNORED}")
        edges = torch.cat([found[: TRIED // 2], found[-TRIED // 2 :]]) if len(found) > TRIED else found
        chosen = np.unique([int((targets == label).reshape(len(targets), -1).any(1).nonzero()[0]) for label in edges])
    rows = part.take(_two(chosen, len(targets)))
    outputs, fit = outputs_of(task, model, name, rows)
    logits = model_outputs.class_second(outputs)
    classes = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim > 1 else 0
    outside = "" if targets.is_floating_point() or not classes else _outside(targets, classes, name)
    if outside and type(task).loss is Task.loss:
        raise CheckError(outside)
    try:
        with torch.no_grad():
            value = task.loss(outputs, fit)
    except Exception as error:
        if outside:
            raise CheckError(outside) from error
        raise CheckError(
            f"part {name!r}: the loss cannot take outputs {_form(outputs)} with targets {_form(fit)}:"
            f" {_first_line(error)}{_place(error)}{_hint(outputs, targets)}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise CheckError(f"the loss returned {_form(value)}, expected a scalar: the mean of a batch, such as .mean()")
    if not bool(torch.isfinite(value)):
        raise CheckError(
            outside or f"part {name!r}: the loss of the initial model is {float(value)}, expected a number"
        )


def _outside(targets: Tensor, classes: int, name: str) -> str:
    """Return what is wrong with labels that the model has no output for; empty: nothing."""
    wrong = targets[((targets < 0) & (targets != IGNORED)) | (targets >= classes)]
    if not wrong.numel():
        return ""
    found = torch.unique(targets[targets != IGNORED])
    likely = "; do labels begin at 1? Subtract 1" if int(found[0]) == 1 and int(found[-1]) == classes else ""
    return (
        f"part {name!r}: {_some([str(int(label)) for label in torch.unique(wrong)], 'label')} outside the model's"
        f" {classes} outputs, {wrong.numel():,} target(s) in all; expected 0 to {classes - 1}, or {IGNORED} where"
        f" there is none{likely}"
    )


def outputs_of(task: Task, model: nn.Module, name: str, rows: Examples) -> tuple[Outputs, Tensor]:
    """Return the model's outputs for some examples, in evaluation mode, and their targets, of the same length.

    Args:
        task: The task.
        model: Its model.
        name: Of the part that the examples are of.
        rows: The examples.

    Raises:
        CheckError: The model cannot take them.
    """
    try:
        batch = model_inputs.take(rows.inputs, slice(None))
        with evaluating(model):
            outputs = [model_inputs.call(model, piece) for piece in model_inputs.pieces(batch, PIECE)]
        whole = model_outputs.joined(outputs) if len(outputs) > 1 else outputs[0]
    except Exception as error:
        kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
        raise CheckError(
            f"task {task.name!r}: the model cannot take inputs of part {name!r}, {_form_of(rows.inputs)}:"
            f" {_first_line(error)}{_place(error)}; its parameters are {', '.join(sorted(kinds))}"
            f"{_dtype_hint(rows.inputs, kinds)}"
        ) from error
    return whole, fitted(rows.targets, whole, batch)


# ---- model and training ----------------------------------------------------------------------------------------------


def _model(workload: Workload) -> nn.Module:
    """Return the initial model, which is whole and finite."""
    task = workload.task
    with reproducible(0), _by_task(task, "model()"):
        made = task.model()
    if not isinstance(made, nn.Module):
        raise CheckError(f"task {task.name!r}: model() returned a {type(made).__name__}, expected a torch.nn.Module")
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        if is_lazy(tensor):
            raise CheckError(
                f"task {task.name!r}: parameter {name!r} has no shape yet, as of a lazy layer; call the model once on"
                " an example in model()"
            )
    _check_weights(task, made)
    with _by_task(task, "the initial model"):
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


def _trained(workload: Workload, model: nn.Module) -> Iterator[str]:
    """Yield notes on what is trained, and on a rate that is another optimizer's."""
    settings, layout = workload.training, workload.layout
    if workload.scenario.trainable is not None:
        names = [spec.name for spec in layout.parameters]
        whole = sum(p.numel() for p in model.parameters())
        yield f"trainable: {_some(names, 'parameter')}, {layout.size:,} of {whole:,} numbers"
        if not layout.frozen:
            yield "trainable: the patterns match every parameter, so nothing is frozen"
    if settings.optimizer != "sgd" and settings.rate > HIGH_RATE:
        yield (
            f"training.learning_rate: {settings.rate:g} is a rate for sgd; {settings.optimizer} takes 0.0001 to 0.01 as"
            " a rule"
        )
    if settings.optimizer == "muon":
        rows = workload.examples(0).take(np.arange(1))
        with reproducible(0), _by_task(workload.task, "a forward pass on an example of part 'train'"):
            batch = model_inputs.first(rows.inputs)
            hidden = hidden_matrices.names(model, lambda: _loss(workload.task, model, batch, rows.targets))
        others = len(layout.parameters) - len(hidden)
        which = _some(sorted(hidden), "hidden weight") if hidden else "nothing, as no matrix is hidden"
        yield f"training.optimizer: Muon steps {which}; AdamW steps {others} other parameters"


def _loss(task: Task, model: nn.Module, batch: Batch, targets: Tensor) -> Tensor:
    outputs = model_inputs.call(model, batch)
    return task.loss(outputs, fitted(targets, outputs, batch))


def _clients(workload: Workload, model: nn.Module) -> Iterator[str]:
    """Yield notes on clients with few examples; batch normalization needs two values a channel."""
    frozen = trainable.frozen_statistics(model)  # which normalize by their running statistics
    training = workload.training
    norms = {name: layer for name, layer in batches.normalizing(model).items() if name not in frozen}
    sizes = [len(part) for part in workload.parts]
    targets = workload.task.data().train.targets
    if not targets.is_floating_point():
        idle = [c for c, part in enumerate(workload.parts) if bool((targets[torch.from_numpy(part)] == IGNORED).all())]
        if idle:
            yield f"{_some(idle, 'client')} with no target in any example: nothing is learned there"
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
        yield f"{_some(lonely, 'client')} with one example, which {what} cannot normalize: their replies are refused"
    elif lonely:
        yield f"{_some(lonely, 'client')} with one example: there {what} uses its running statistics in training, too"
    rest = [c for c, size in enumerate(sizes) if size > training.batch_size and size % training.batch_size == 1]
    if rest:
        yield f"{_some(rest, 'client')} whose last batch of one example joins the one before, for {what}"


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


def _step(workload: Workload, model: nn.Module) -> Iterator[str]:
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
            with _by_task(task, "training on a batch of part 'train'"):
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
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise CheckError(
                f"task {task.name!r}: the first gradient of parameter {name!r} holds NaN or infinity, though the loss"
                f" is {float(value):g}; is there a root, a logarithm or a division by zero in the model or the loss?"
            )
    idle = [name for name, parameter in named.items() if parameter.requires_grad and parameter.grad is None]
    if idle:
        yield f"{_some(idle, 'parameter')} without a gradient: the loss does not depend on it, and it never changes"


def _from_the_model(scenario: Scenario) -> bool:
    """Return whether a student is the model itself, made smaller, and not an architecture of its own."""
    return any(tier.student in ("pruned", "auto") for tier in scenario.students.tiers)


# ---- students and rounds ---------------------------------------------------------------------------------------------


def _plan(job: Job, make_plan: MakePlan, splits: Splits, model: nn.Module) -> server.Plan:
    """Return the server's plan after its publisher has been asked whether all students can be made."""
    scenario = job.whole.scenario
    students, proxy = scenario.students, splits.proxy
    if _from_the_model(scenario):
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
                raise CheckError(
                    f"the model comes with infinity in buffer {name!r}, which no student's bundle can hold; register it"
                    " with persistent=False, as a constant that every instance makes for itself"
                )
    if students.tiers:
        labeled = students.distill.labeled
        if students.data.labels and labeled is not None and labeled > len(proxy.targets):
            raise CheckError(
                f"students.distill.labeled: got {labeled}, but part 'proxy' has {len(proxy.targets)} examples"
            )
    with tempfile.TemporaryDirectory(prefix="fedpress-check-") as folder, _by_task(job.whole.task, "the plan"):
        planned = make_plan(job, RunFolder(Path(folder)))
        if planned.publisher:
            planned.publisher.check(planned.model)
    return planned


def _rounds(workload: Workload) -> Iterator[str]:
    """Yield notes on deadlines and faults; raise where no reply of a round could ever count."""
    scenario, network = workload.scenario, workload.network
    deadline = scenario.sampling.deadline
    if scenario.faults is not None:
        for kind in (faults.CRASHES, faults.DIVERGES, faults.LOST, faults.DAMAGED):
            if getattr(scenario.faults, kind) == 1:
                raise CheckError(f"faults.{kind}: with a chance of 1 no reply of any round can be used")
        if scenario.faults.late == 1 and deadline is not None and scenario.faults.late_seconds > deadline:
            raise CheckError(
                f"faults.late: with a chance of 1 and late_seconds {scenario.faults.late_seconds:g} every reply comes"
                f" after sampling.deadline, {deadline:g}"
            )
    if network is None or deadline is None:
        return
    least = [  # without any byte, and if it answers at all
        min(
            network.seconds(client=client, round=number, down_bytes=0, examples=examples, up_bytes=0)
            for number in range(1, min(scenario.rounds, 10) + 1)
        )
        for client, examples in ((c, workload.examples_a_round(c)) for c in range(scenario.clients))
    ]
    slow = [client for client, seconds in enumerate(least) if deadline < seconds < float("inf")]
    if slow and min(least) > deadline:
        raise CheckError(
            f"sampling.deadline: got {deadline:g} s, but no client can be in time: with messages of no bytes the"
            f" fastest takes {min(least):.3g} s"
        )
    if slow:
        yield f"{_some(slow, 'client')} too slow for sampling.deadline, {deadline:g} s, whatever the messages weigh"


# ---- texts and errors ------------------------------------------------------------------------------------------------


@contextmanager
def _by_task(task: Task | str, what: str) -> Iterator[None]:
    """Turn an error of a task's code into one that names it; a module that is missing is reported elsewhere."""
    try:
        yield
    except (FedpressError, ModuleNotFoundError):
        raise
    except Exception as error:
        name = task if isinstance(task, str) else task.name
        raise CheckError(
            f"task {name!r}: {what} raised {type(error).__name__}: {_first_line(error)}{_place(error)}"
        ) from error


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Run a block with all global generators in a state of its own, and restore them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _two(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the rows, and another one where there is only one: batch normalization may not take one example."""
    if len(rows) != 1 or count == 1:
        return rows
    return np.array([rows[0], (rows[0] + 1) % count])


def _not_finite(values: Tensor) -> Tensor:
    """Return the indices of rows that hold NaN or infinity, int64 (M,)."""
    if not values.is_floating_point():
        return torch.empty(0, dtype=torch.int64)
    parts = torch.split(values, ROWS)
    finite = torch.cat([torch.isfinite(part).reshape(len(part), -1).all(dim=1) for part in parts])
    return (~finite).nonzero()[:, 0]


def _spoiled(inputs: Inputs) -> Tensor:
    """Return the indices of inputs that hold NaN or infinity, int64 (M,); of stored ones, those that are tried."""
    in_memory = isinstance(inputs, Tensor | Mapping)
    batch = inputs if in_memory else model_inputs.first(inputs, TRIED)
    found = torch.cat([_not_finite(part) for part in model_inputs.named(batch).values()])
    rows: Tensor = torch.unique(found)
    return rows


def _place(error: BaseException) -> str:
    """Return where an error was raised in code that is neither fedpress's nor an installed package's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.exists() and not any(path.is_relative_to(folder) for folder in INSTALLED):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _hint(outputs: Outputs, targets: Tensor) -> str:
    shape = tuple(outputs.shape[:-1]) if isinstance(outputs, Tensor) else ()
    if len(shape) > 1 and shape[1:] == targets.shape[1:]:
        return (
            ". Are the classes last? torch's losses take (N, classes, L): outputs.transpose(1, 2), or {'logits': ...}"
        )
    if targets.is_floating_point():
        return ". Are the targets labels? The cross-entropy takes whole numbers: targets.long()"
    return ""


def _form_of(inputs: Inputs) -> str:
    """Return what inputs are, in words."""
    return _form(inputs) if isinstance(inputs, Tensor) else f"({model_inputs.form(inputs)})"


def _dtype_hint(inputs: Inputs, kinds: set[str]) -> str:
    if not isinstance(inputs, Tensor):
        return ""
    kind = str(inputs.dtype).removeprefix("torch.")
    if kinds == {"float32"} and kind != "float32":
        return f". Should the inputs be float32, too? They are {kind}: inputs.float()"
    return ""


def _some(found: Sequence[object], noun: str) -> str:
    """Return a number of things and the first few of them, such as "3 clients (0, 4, 7)"."""
    more = ", ..." if len(found) > NAMED else ""
    plural = "s" if len(found) > 1 else ""
    return f"{len(found):,} {noun}{plural} ({', '.join(map(str, found[:NAMED]))}{more})"
