"""Export of a student to ONNX, which runs without torch; `onnx_quantization` makes it int8.

What a graph answers is compared with the model that it was exported from, in ONNX Runtime, as devices run it: tracing
records the operations for one input, and what a model computes outside them (numpy, numbers of Python, a branch on
data) stays in the graph as it was for that input.

Needs the packages onnx and onnxruntime: the extra `onnx`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import architecture, batch_dependence, forward
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.bundles import onnx_runtime
from fedpress.compression.models.bundles.onnx_runtime import INPUT, OnnxError, Runner
from fedpress.compression.models.class_accuracy import judged
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.outputs import LOGITS, EvaluationError, Outputs
from fedpress.compression.models.quantization import quantization_aware
from fedpress.compression.models.task import Examples, Task

OPSET: Final = 17
MAX_MESSAGE_BYTES: Final = (1 << 31) - 1
"""Most bytes of a protobuf message."""
BATCH: Final = 64
"""Inputs in a forward pass."""
SINGLE: Final = 256
"""Inputs that are run one by one."""
TOLERANCE: Final = 1e-3
"""Largest difference of an output by rounding, as a fraction of the largest output."""
ROUNDED: Final = 0.002
"""Largest fraction of inputs that may differ beyond it: those at a step, such as a sign, where rounding decides."""
MOST_LOST: Final = 0.1
"""Loss of accuracy by int8 activations, beyond what chance explains, from which on a graph is refused."""


class Graph(nn.Module):
    """An ONNX model as a torch module, to be evaluated like the student that it was made from.

    Args:
        model: Bytes of the model.

    Attributes:
        compared: That it was compared with that student at several lengths of sequences: rounding to int8 may fall
            otherwise at another length, and is not to be taken for a model that attends to padding.

    Raises:
        OnnxError: ONNX Runtime does not take it.
    """

    compared: Final = True

    def __init__(self, model: bytes) -> None:
        super().__init__()
        self.run: Runner = onnx_runtime.runner(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        """Return the same graph, which holds no state and may be run by several threads."""
        return self

    def forward(self, *inputs: Tensor, **named: Tensor) -> Outputs:
        """Return the graph's outputs for a batch of inputs (N, ...), or by name, as the student returns them."""
        answers = torch.from_numpy(self.run(arrays_of(named or inputs[0])))
        return model_outputs.Logits(logits=answers) if self.run.output == LOGITS else answers


class _Answers(nn.Module):
    """The answers of a model that takes tensors by name, which a trace can take by position.

    Args:
        model: The model.
        names: Names of its inputs, in the order of the positions; None: it takes one tensor.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *given: Tensor) -> Any:
        """Return the answers."""
        batch = given[0] if self._names is None else dict(zip(self._names, given, strict=True))
        return model_outputs.answers(model_inputs.call(self.model, batch))


def export(model: nn.Module, inputs: Inputs) -> bytes:
    """Return a model as float32 ONNX of any batch size, with the inputs' names, and of any length of sequences by name.

    The length is free where the model runs on shorter sequences, too. The output is called `logits` where the model
    returns it by name, else `output`.

    Law: for the given inputs, in batches of unlike sizes and lengths and one by one, the graph's outputs are those of
    the model up to rounding, or an error says that they are not.

    Args:
        model: Traceable model, without branches that depend on data; untouched.
        inputs: Inputs (N, ...), N >= 1: the first are traced, and the graph is compared on all.

    Raises:
        OnnxError: A layer has no counterpart in ONNX, or the graph answers otherwise than the model.
    """
    _require_room(model)
    plain, _ = quantization_aware.finish(model)
    plain.cpu().eval()
    try:
        batch_dependence.require_independent(plain, inputs)
    except EvaluationError as error:
        raise OnnxError(f"{error} An ONNX model must answer one input as it answers many.") from error
    example = batch_dependence.several(model_inputs.first(inputs, 2))
    free = forward.free_axes(plain, example)
    graph, remarks = _traced(plain, example if isinstance(example, Mapping) else example[:1], free)
    run = onnx_runtime.runner(graph)
    for how, batches in _compared(plain, inputs, free=free is not None).items():
        _compare(run, plain, how, batches, remarks)
    return graph


def _require_room(model: nn.Module) -> None:
    """Check that the weights fit one protobuf message, before they are copied: beyond it, ONNX needs more files."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in architecture.tensors(model).values())
    if size > MAX_MESSAGE_BYTES:
        raise OnnxError(
            f"the model's weights have {size:,} bytes, and an ONNX model in one piece at most {MAX_MESSAGE_BYTES:,},"
            " the limit of protobuf; a bundle carries none in several: leave students.quantize.onnx off, or make the"
            " student smaller"
        )


def _answers_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's answers, (N, ...)."""
    with torch.no_grad():
        outputs = model_inputs.call(model, batch)
    answers = model_outputs.answers(outputs)
    if not isinstance(answers, Tensor):
        raise OnnxError(
            f"the model returns a {type(outputs).__name__}, expected one tensor, or a mapping with the entry"
            f" {LOGITS!r}: devices are sent one"
        )
    return answers


def _compared(model: nn.Module, inputs: Inputs, *, free: bool) -> dict[str, list[Batch]]:
    """Return the batches on which a graph is compared with its model, by how they are made.

    Args:
        model: The model.
        inputs: Inputs (N, ...).
        free: Whether the length of sequences is free.
    """
    count = model_inputs.count(inputs)
    if count == 1:
        inputs = batch_dependence.several(model_inputs.first(inputs))
        count = model_inputs.count(inputs)
    third = -(-count // 3)  # batches of unlike sizes
    parts = [model_inputs.subset(inputs, slice(0, third)), model_inputs.subset(inputs, slice(third, count))]
    few = model_inputs.subset(inputs, slice(0, SINGLE))
    batches = {
        "in batches": [piece for part in parts for piece in model_inputs.pieces(part, BATCH)],
        "one by one": list(model_inputs.pieces(few, 1)),
    }
    if free:
        batches["without padding"] = [_unpadded(batch) for batch in batches["one by one"]]
        batches["cut short"] = [_halved(batch) for batch in batches["in batches"]]
        longer = forward.doubled(batches["in batches"][0])
        with contextlib.suppress(IndexError, RuntimeError, ValueError):  # of a model that takes none as long
            _ = _outputs_of(model, longer)
            batches["longer than any"] = [longer]
    return batches


def _unpadded(batch: Batch) -> Batch:
    """Return sequences without the padding on their right, if there is a mask that says where it is."""
    places = model_inputs.present(batch)
    if places is None or not bool(places.any()):
        return batch
    return model_inputs.shortened(batch, int(places.any(dim=0).nonzero().max()) + 1)


def _halved(batch: Batch) -> Batch:
    size = model_inputs.length(batch)
    return batch if size is None else model_inputs.shortened(batch, -(-size // 2))


def _traced(model: nn.Module, example: Batch, free: set[int] | None) -> tuple[bytes, list[str]]:
    """Return the graph, and what tracing has remarked.

    Args:
        model: The model.
        example: Batch to trace.
        free: Axes of the answers as long as the sequences, whose length is free; None: it is fixed.
    """
    file = io.BytesIO()
    named = dict(example) if isinstance(example, Mapping) else {INPUT: example}
    size = model_inputs.length(example)
    by_name = isinstance(_outputs_of(model, example), Mapping)
    output = LOGITS if by_name else "output"
    axes = {
        name: {0: "N", 1: "L"} if free is not None and part.ndim > 1 and part.shape[1] == size else {0: "N"}
        for name, part in named.items()
    }
    axes[output] = {0: "N"} | {axis: "L" for axis in free or ()}
    plain = (
        model
        if not by_name and not isinstance(example, Mapping)
        else _Answers(model, list(example) if isinstance(example, Mapping) else None).eval()
    )
    with warnings.catch_warnings(record=True) as caught, _no_output():
        warnings.simplefilter("always")
        # The newer exporter takes ten times as long and needs one more package; this one is deprecated.
        try:
            torch.onnx.export(
                plain,
                tuple(named.values()),
                file,  # type: ignore[arg-type]  # of the other exporter
                dynamo=False,
                opset_version=OPSET,
                input_names=list(named),
                output_names=[output],
                dynamic_axes=axes,
            )
            failure = None
        except Exception as error:  # whatever a model's own code raises when it is traced
            failure = error
    remarks = [
        f"{warning.filename}:{warning.lineno}: {str(warning.message).partition('. ')[0]}"
        for warning in caught
        if warning.category.__name__ == "TracerWarning"  # of torch.jit, which does not export it
    ]
    if failure is not None:
        text = str(failure).partition("  [Caused by")[0].partition(" Please feel free")[0].strip()[:500]
        raise OnnxError(
            f"the model cannot be exported to ONNX: {text or type(failure).__name__}{_remarked(remarks)}; use a layer"
            " that ONNX has, or leave students.quantize.onnx off"
        ) from failure
    return file.getvalue(), remarks


def _outputs_of(model: nn.Module, batch: Batch) -> Outputs:
    with torch.no_grad():
        return model_inputs.call(model, batch)


def _compare(run: Runner, model: nn.Module, how: str, batches: Sequence[Batch], remarks: list[str]) -> None:
    """Check that a graph answers batches as the model does."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        count = model_inputs.count(batch)
        several = batch if count > 1 else model_inputs.mapped(batch, lambda part: torch.cat([part, part]))
        expected = _answers_of(model, several)[:count]  # in torch, some layers treat a single input otherwise
        sizes = "" if (size := model_inputs.length(batch)) is None else f", {size} places long,"
        try:
            answers = torch.from_numpy(run(arrays_of(batch)))
        except OnnxError as error:
            raise OnnxError(
                f"the ONNX graph does not run on {count} input{'s' if count > 1 else ''}{sizes} at a time:"
                f" {error}{_remarked(remarks)}; {CAUSES}"
            ) from error
        if answers.shape != expected.shape:
            raise OnnxError(
                f"the ONNX graph answers {count} inputs{sizes} with {tuple(answers.shape)}, expected"
                f" {tuple(expected.shape)}{_remarked(remarks)}; {CAUSES}"
            )
        pairs.append((_where_present(answers, batch), _where_present(expected, batch)))
    finite = [float(each[each.isfinite()].abs().max()) for _, each in pairs if bool(each.isfinite().any())]
    scale = max(finite, default=0.0)
    differing = [_differing(*pair, scale) for pair in pairs]
    number, count = sum(int(each.sum()) for each in differing), sum(map(len, differing))
    if number > ROUNDED * count:
        apart = max(
            float((of_graph.double() - of_model.double())[rows].abs().max())
            for (of_graph, of_model), rows in zip(pairs, differing, strict=True)
            if bool(rows.any())
        )
        raise OnnxError(
            f"the ONNX graph answers {number:,} of {count:,} inputs otherwise than the model, {how}, by up to"
            f" {apart:.3g}{_remarked(remarks)}; {CAUSES}"
        )


def _where_present(answers: Tensor, batch: Batch) -> Tensor:
    """Return answers with zeros at the places of padding, about which nothing is asked."""
    places = model_inputs.present(batch)
    if places is None or answers.ndim != 3 or places.shape[1] not in answers.shape[1:]:
        return answers
    along_rows = answers.shape[1] == places.shape[1]
    return torch.where(places[:, :, None] if along_rows else places[:, None], answers, 0.0)


def arrays_of(batch: Batch) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return inputs as numpy's arrays, by name where they have names."""
    if isinstance(batch, Mapping):
        return {name: part.cpu().numpy() for name, part in batch.items()}
    array: NDArray[Any] = batch.cpu().numpy()
    return array


CAUSES: Final = (
    "something in the model's forward leaves torch's operations, or depends on the input's values or on the size of its"
    " batch: numpy, int(x.shape[0]), an if on data, a loop over the batch. Write it with tensors, or leave"
    " students.quantize.onnx off"
)
"""Likely causes of a graph that answers otherwise."""


def _differing(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return for which inputs outputs (N, ...) differ beyond rounding, bool (N,); `scale` is the largest of them."""
    same = torch.isclose(left.double(), right.double(), rtol=TOLERANCE, atol=TOLERANCE * scale + 1e-12, equal_nan=True)
    return ~same.reshape(len(same), -1).all(dim=1)


def _remarked(remarks: list[str]) -> str:
    """Return the remarks of tracing, as an insertion into an error."""
    return f". Tracing remarked: {'; '.join(dict.fromkeys(remarks))}" if remarks else ""


@contextmanager
def _no_output() -> Iterator[None]:
    """Discard what is written to the process's standard output: on an error, torch prints the whole graph there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed, as in a service
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def require_accuracy(graph: bytes, model: nn.Module, task: Task, examples: Examples) -> float:
    """Return the accuracy of a quantized graph, after checking that it is that of a quantized model.

    Args:
        graph: Int8 model, as `quantize_static` returns it.
        model: Student that it was made from; left as it is.
        task: Task that judges the answers.
        examples: Labeled examples (N, ...).

    Raises:
        OnnxError: It answers one by one otherwise than in batches, or its accuracy is lower than that of the model by
            more than quantization explains.
    """
    quantized = Graph(graph)
    answers, expected = judged(quantized, task, examples), judged(model, task, examples)
    few = examples.take(slice(0, SINGLE))
    together, alone = judged(quantized, task, few), judged(quantized, task, few, batch_size=1)
    changed = int((together.right != alone.right).sum())
    if changed > max(1, 0.01 * len(alone.right)):
        raise OnnxError(
            f"{changed:,} of {len(alone.right):,} answers of the int8 ONNX graph are judged otherwise one by one than"
            f" in batches (accuracy {alone.accuracy:.2%}, {together.accuracy:.2%}); {CAUSES}"
        )
    lost, chance = expected.accuracy - answers.accuracy, (1 / len(answers.right)) ** 0.5  # two standard deviations
    if lost > MOST_LOST + chance:
        raise OnnxError(
            f"the int8 ONNX graph has an accuracy of {answers.accuracy:.2%}, the student of {expected.accuracy:.2%}:"
            " activations of this model do not fit 8 bits with the ranges of the calibration inputs. Are some inputs or"
            " activations far larger than the rest, or the proxy data unlike those? Or leave students.quantize.onnx off"
        )
    return answers.accuracy
