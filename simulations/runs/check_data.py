"""Checks of a scenario's data: the same at every call, partitioned, and taken by the model and its loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.batch_dependence import by_example
from fedpress.compression.models.inputs import Inputs, InputsError
from fedpress.compression.models.outputs import EvaluationError, Outputs, fitted
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.task import IGNORED, Examples, Splits, Task, class_probabilities
from fedpress.simulations.runs import check_texts as texts
from fedpress.simulations.runs.check_texts import CheckError
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.tasks import fingerprint

ROWS = 4096
"""Examples that are looked at together for NaN."""
TRIED = 64
"""Most examples of a part that are put through the model."""
PIECE = 16
"""Of these at a time."""
DECODER = "decoder_input_ids"
"""Argument of encoder-decoders of transformers that takes the tokens so far."""


def load(workload: Workload) -> Splits:
    """Return the task's data, the same at every call and in every instance of the task."""
    choice = workload.scenario.task
    with texts.by_task(choice.name, "its constructor"):
        task = workload.task
    with texts.drawing(1), texts.by_task(task, "data()"):
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
                f"{_targets_hint(part[1]) if isinstance(part, tuple) and len(part) == 2 else ''}"
            )
        try:
            with texts.by_task(task, f"reading part {name!r}"):
                model_inputs.check(part.inputs)
        except InputsError as error:
            raise CheckError(f"task {task.name!r}: part {name!r}: {error}") from error
    for name in used_parts(workload.scenario):
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
    with texts.drawing(2), texts.by_task(task, "data(), called again,"):
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


def used_parts(scenario: Scenario) -> dict[str, bool]:
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


def check_partition(workload: Workload, splits: Splits) -> Iterator[str]:
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


def check_part(task: Task, model: nn.Module, name: str, part: Examples, judged: bool) -> Iterator[str]:
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
        with torch.no_grad(), texts.by_task(task, f"the loss of part {name!r}"):
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
        yield from _doubtful(task, model, name, part)


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
        if isinstance(error, KeyError) and isinstance(outputs, Mapping) and error.args[:1] == ("loss",):
            raise CheckError(
                f"part {name!r}: the loss reads outputs['loss'], which {texts.form(outputs)} has not"
                f"{texts.place(error)}: a model of transformers returns it only where labels are among its inputs, and"
                " here they are targets; make the loss of the logits and the targets"
            ) from error
        raise CheckError(
            f"part {name!r}: the loss cannot take outputs {texts.form(outputs)} with targets {texts.form(fit)}:"
            f" {texts.reason(error)}{texts.place(error)}{_hint(outputs, targets)}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise CheckError(
            f"the loss returned {texts.form(value)}, expected a scalar: the mean of a batch, such as .mean()"
        )
    probabilities = isinstance(logits, Tensor) and targets.is_floating_point() and logits.shape == fit.shape
    if type(task).loss is Task.loss and probabilities and fit[0].numel() > 1 and not class_probabilities(fit):
        raise CheckError(
            f"part {name!r}: the default loss takes {texts.form(fit)}, as the outputs have, for probabilities of"
            " classes, and they do not add up to 1. Several labels an example: a `loss` such as"
            " binary_cross_entropy_with_logits, and `correct`, such as (outputs > 0) == (targets > 0.5); several"
            " numbers: mse_loss, and (outputs - targets).abs() < 0.1"
        )
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
        f"part {name!r}: {texts.some([str(int(label)) for label in torch.unique(wrong)], 'label')} outside the model's"
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
            parts = list(model_inputs.pieces(batch, PIECE))
            outputs = [model_inputs.call(model, piece) for piece in parts]
            if not all(map(by_example, outputs, map(model_inputs.count, parts))):  # a figure of the batch beside
                outputs = [model_inputs.call(model, batch)]
        whole = model_outputs.joined(outputs) if len(outputs) > 1 else outputs[0]
    except EvaluationError as error:
        raise CheckError(f"task {task.name!r}: part {name!r}: {error}") from error
    except Exception as error:
        kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
        raise CheckError(
            f"task {task.name!r}: the model cannot take inputs of part {name!r}, {_form_of(rows.inputs)}:"
            f" {texts.reason(error)}{texts.place(error)}; its parameters are {', '.join(sorted(kinds))}"
            f"{_dtype_hint(rows.inputs, kinds)}{_decoder_hint(model, rows.inputs)}"
        ) from error
    return whole, fitted(rows.targets, whole, batch)


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


def _hint(outputs: Outputs, targets: Tensor) -> str:
    shape = tuple(outputs.shape[:-1]) if isinstance(outputs, Tensor) else ()
    if len(shape) > 1 and shape[1:] == targets.shape[1:]:
        return (
            ". Are the classes last? torch's losses take (N, classes, L): outputs.transpose(1, 2), or {'logits': ...}"
        )
    if targets.dtype != torch.int64:
        return ". Are the targets labels? The cross-entropy takes whole numbers: targets.long()"
    if targets.ndim == 2 and targets.shape[1] == 1:
        return ". Has each label an axis of its own? targets[:, 0]"
    if isinstance(outputs, Tensor) and targets.shape[1:] == outputs.shape[1:]:
        return (
            ". Are the targets one-hot? targets.argmax(1); or has an example several labels? A `loss` such as"
            " binary_cross_entropy_with_logits(outputs, targets.float()), and `correct`"
        )
    return ""


def _targets_hint(targets: object) -> str:
    """Return how to make a tensor of targets that are none, as the end of a sentence."""
    if isinstance(targets, Tensor):
        return ""
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
        return ": torch.from_numpy(targets)"
    first = next(iter(targets), None) if isinstance(targets, Iterable) else None
    if isinstance(first, str):
        return ": number the labels, torch.tensor([NAMES.index(label) for label in labels])"
    return ": torch.tensor(list(targets))" if first is not None else ""


def _doubtful(task: Task, model: nn.Module, name: str, part: Examples) -> Iterator[str]:
    """Yield notes on what the default loss takes, though it is hardly meant."""
    if type(task).loss is not Task.loss or part.targets.is_floating_point():
        return
    rows = part.take(np.arange(min(len(part.targets), PIECE)))
    outputs, targets = outputs_of(task, model, name, rows)
    logits = model_outputs.class_second(outputs)
    if logits.ndim > 1 and logits.shape[1] > 1 and class_probabilities(logits):
        yield (
            f"part {name!r}: the model's outputs are probabilities, and the default loss, the cross-entropy, takes"
            " logits: it applies softmax once more, and learning is slow; leave it out of the model"
        )
    for key, tensor in model_inputs.named(model_inputs.take(rows.inputs, slice(None))).items():
        if targets.ndim > 1 and targets.shape == tensor.shape and not tensor.is_floating_point():
            scored = targets != IGNORED
            if int(scored.sum()) > len(targets) and bool((targets == tensor)[scored].all()):
                yield (
                    f"part {name!r}: the targets are {key!r} itself, place by place, so a model learns to copy it. Is"
                    " the next token meant? The loss does not shift, as models of transformers do that are given"
                    f" labels: targets[:, :-1] = {key}[:, 1:], and {IGNORED} at the last place"
                )


def _decoder_hint(model: nn.Module, inputs: Inputs) -> str:
    """Return what an encoder-decoder lacks; empty: nothing, or it is none."""
    named = model_inputs.named(model_inputs.first(inputs))
    if DECODER not in inspect.signature(model.forward).parameters or any(name.startswith("decoder") for name in named):
        return ""
    return (
        f". An encoder-decoder takes {DECODER!r} among its inputs, too: the targets shifted to the right by one"
        " place, as model.prepare_decoder_input_ids_from_labels makes them"
    )


def _form_of(inputs: Inputs) -> str:
    """Return what inputs are, in words."""
    return texts.form(inputs) if isinstance(inputs, Tensor) else f"({model_inputs.form(inputs)})"


def _dtype_hint(inputs: Inputs, kinds: set[str]) -> str:
    if not isinstance(inputs, Tensor):
        return ""
    kind = str(inputs.dtype).removeprefix("torch.")
    if kinds == {"float32"} and kind != "float32":
        return f". Should the inputs be float32, too? They are {kind}: inputs.float()"
    return ""
