"""Export of a student to ONNX, which runs without torch, and its static quantization to int8.

What a graph answers is compared with the model that it was exported from, in ONNX Runtime, as devices run it: tracing
records the operations for one input, and what a model computes outside them (numpy, numbers of Python, a branch on
data) stays in the graph as it was for that input.

Static quantization with ONNX Runtime's own tool: weights int8 per channel, activations int8 with ranges observed on the
calibration inputs, written as pairs of QuantizeLinear and DequantizeLinear (B. Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2; S. R. Jain et al., 2020).

Needs the packages onnx and onnxruntime: the extra `onnx`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpress.compression.models import architecture, forward
from fedpress.compression.models.bundles import onnx_runtime
from fedpress.compression.models.bundles.onnx_runtime import INPUT, OnnxError, Runner
from fedpress.compression.models.class_accuracy import judged
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

    Raises:
        OnnxError: ONNX Runtime does not take it.
    """

    def __init__(self, model: bytes) -> None:
        super().__init__()
        self.run: Runner = onnx_runtime.runner(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        """Return the same graph, which holds no state and may be run by several threads."""
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the graph's outputs for a batch of inputs (N, ...)."""
        return torch.from_numpy(self.run(inputs.cpu().numpy()))


def export(model: nn.Module, inputs: Tensor) -> bytes:
    """Return a model as float32 ONNX with one input of any batch size.

    Law: for the given inputs, in batches of unlike sizes and one by one, the graph's outputs are those of the model up
    to rounding, or an error says that they are not.

    Args:
        model: Traceable model, without branches that depend on data; untouched.
        inputs: Inputs (N, ...), N >= 1: the first is traced, and the graph is compared on all.

    Raises:
        OnnxError: A layer has no counterpart in ONNX, or the graph answers otherwise than the model.
    """
    _require_room(model)
    plain, _ = quantization_aware.finish(model)
    plain.cpu().eval()
    compared = forward.several(inputs)
    expected = _expected(plain, compared)
    graph, remarks = _traced(plain, inputs[:1])
    _compare(onnx_runtime.runner(graph), compared, expected, remarks)
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


def _expected(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's outputs, (N, ...)."""
    try:
        forward.require_independent(model, inputs)
    except forward.EvaluationError as error:
        raise OnnxError(f"{error} An ONNX model must answer one input as it answers many.") from error
    with torch.no_grad():
        parts = [model(part) for part in torch.split(inputs, BATCH)]
    if not isinstance(parts[0], Tensor):
        raise OnnxError(f"the model returns a {type(parts[0]).__name__}, expected one tensor: devices are sent one")
    return torch.cat(parts)


def _traced(model: nn.Module, example: Tensor) -> tuple[bytes, list[str]]:
    """Return the graph, and what tracing has remarked."""
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, _no_output():
        warnings.simplefilter("always")
        # The newer exporter takes ten times as long and needs one more package; this one is deprecated.
        try:
            torch.onnx.export(
                model,
                (example,),
                file,  # type: ignore[arg-type]  # of the other exporter
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=["output"],
                dynamic_axes={INPUT: {0: "N"}, "output": {0: "N"}},
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


def _compare(run: Runner, inputs: Tensor, expected: Tensor, remarks: list[str]) -> None:
    """Check that a graph answers inputs (N, ...), N >= 2, as expected."""
    third = -(-len(inputs) // 3)  # batches of unlike sizes
    batches = [*torch.split(inputs[:third], BATCH), *torch.split(inputs[third:], BATCH)]
    for how, parts in (("in batches", batches), ("one by one", torch.split(inputs[:SINGLE], 1))):
        answers = []
        for part in parts:
            try:
                answers.append(torch.from_numpy(run(part.numpy())))
            except OnnxError as error:
                raise OnnxError(
                    f"the ONNX graph does not run on {len(part)} input{'s' if len(part) > 1 else ''} at a time:"
                    f" {error}{_remarked(remarks)}; {CAUSES}"
                ) from error
            if answers[-1].shape != (len(part), *expected.shape[1:]):
                raise OnnxError(
                    f"the ONNX graph answers {len(part)} inputs with {tuple(answers[-1].shape)}, expected"
                    f" {(len(part), *expected.shape[1:])}{_remarked(remarks)}; {CAUSES}"
                )
        of_graph = torch.cat(answers)
        of_model = expected[: len(of_graph)]
        differing = _differing(of_graph, of_model)
        if int(differing.sum()) > ROUNDED * len(of_graph):
            apart = float((of_graph.double() - of_model.double())[differing].abs().max())
            raise OnnxError(
                f"the ONNX graph answers {int(differing.sum()):,} of {len(of_graph):,} inputs otherwise than the model,"
                f" {how}, by up to {apart:.3g}{_remarked(remarks)}; {CAUSES}"
            )


CAUSES: Final = (
    "something in the model's forward leaves torch's operations, or depends on the input's values or on the size of its"
    " batch: numpy, int(x.shape[0]), an if on data, a loop over the batch. Write it with tensors, or leave"
    " students.quantize.onnx off"
)
"""Likely causes of a graph that answers otherwise."""


def _differing(left: Tensor, right: Tensor) -> Tensor:
    """Return for which inputs outputs (N, ...) differ beyond rounding, bool (N,)."""
    finite = right[right.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
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
    few = Examples(examples.inputs[:SINGLE], examples.targets[:SINGLE])
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


class _Batches:
    """Batches of calibration inputs."""

    def __init__(self, inputs: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(torch.split(inputs, BATCH))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by the name of the input; None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def quantize_static(model: bytes, calibration: Tensor) -> bytes:
    """Return an ONNX model with int8 weights, one scale a channel, and int8 activations.

    Args:
        model: Float32 ONNX model, as `export` returns it.
        calibration: Inputs (N, ...) that determine the ranges of activations.

    Raises:
        ValueError: There are no calibration inputs.
        OnnxError: ONNX Runtime cannot run or quantize the model.
    """
    if not len(calibration):
        raise ValueError("static quantization needs calibration inputs, got none: does the task hold out a proxy part?")
    try:
        return _quantized(model, calibration)
    except Exception as error:  # of the tool, which has no classes of its own, or of ONNX Runtime
        raise OnnxError(f"ONNX Runtime cannot quantize the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _quantized(model: bytes, calibration: Tensor) -> bytes:
    # From a file: ONNX Runtime 1.30 loses the weights of a model in memory.
    with _quiet(), tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference

        file.write(model)
        file.flush()
        prepared = io.BytesIO()
        shape_inference.quant_pre_process(file.name, prepared, skip_symbolic_shape=True)
        quantized = io.BytesIO()
        quantization.quantize_static(
            onnx.load_from_string(prepared.getvalue()),
            quantized,
            _Batches(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return quantized.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice on the root logger and its warnings about its own code.

    The root logger stays as it is: a module of the quantizer gives it a handler when it is imported, and from then on
    every line of a run's log would be on the terminal, too.
    """
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
