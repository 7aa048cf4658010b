"""Static quantization of an ONNX model to int8, with ONNX Runtime's own tool.

Weights are int8 per channel, activations int8 with ranges observed on calibration inputs, written as pairs of
QuantizeLinear and DequantizeLinear (B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 2; S. R. Jain et al., 2020).

Needs the packages onnx and onnxruntime: the extra `onnx`.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import onnx
from numpy.typing import NDArray

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.bundles import onnx_export
from fedpress.compression.models.bundles.onnx_runtime import INPUT, OnnxError
from fedpress.compression.models.inputs import Batch, Inputs

MASKING: Final = -1e4
"""Constants from which on downwards are added to hide places from attention."""


class _Batches:
    """Batches of calibration inputs."""

    def __init__(self, inputs: Inputs, model: onnx.ModelProto) -> None:
        self._read = {each.name for each in model.graph.input}
        self.batches: Iterator[Batch] = model_inputs.pieces(inputs, onnx_export.BATCH)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by the names of the graph's inputs; None after the last."""
        batch = next(self.batches, None)
        if batch is None:
            return None
        arrays = onnx_export.arrays_of(batch)
        return (
            {name: each for name, each in arrays.items() if name in self._read}
            if isinstance(arrays, dict)
            else {INPUT: arrays}
        )


def quantize_static(model: bytes, calibration: Inputs) -> bytes:
    """Return an ONNX model with int8 weights, one scale a channel, and int8 activations.

    Args:
        model: Float32 ONNX model, as `export` returns it.
        calibration: Inputs (N, ...) that determine the ranges of activations.

    Raises:
        ValueError: There are no calibration inputs.
        OnnxError: ONNX Runtime cannot run or quantize the model.
    """
    if not model_inputs.count(calibration):
        raise ValueError("static quantization needs calibration inputs, got none: does the task hold out a proxy part?")
    try:
        return _quantized(model, calibration)
    except Exception as error:  # of the tool, which has no classes of its own, or of ONNX Runtime
        raise OnnxError(f"ONNX Runtime cannot quantize the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _quantized(model: bytes, calibration: Inputs) -> bytes:
    # From a file: ONNX Runtime 1.30 loses the weights of a model in memory.
    with _quiet(), tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference

        file.write(model)
        file.flush()
        prepared = io.BytesIO()
        shape_inference.quant_pre_process(file.name, prepared, skip_symbolic_shape=True)
        quantized = io.BytesIO()
        graph = onnx.load_from_string(prepared.getvalue())
        quantization.quantize_static(
            graph,
            quantized,
            _Batches(calibration, graph),
            nodes_to_exclude=_masking(graph),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return quantized.getvalue()


def _masking(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that compute with the large negative numbers of attention's masks; others get names.

    These numbers, such as the smallest float32, would be the range of activations that are added to them, so that all
    others are rounded to zero. A softmax ends them: its outputs are shares.
    """
    graph = model.graph
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                constants[node.output[0]] = attribute.t
    large = {
        name
        for name, tensor in constants.items()
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        and (values := onnx.numpy_helper.to_array(tensor)).size
        and float(values.min()) <= MASKING
    }
    found: list[str] = []
    for node in graph.node:  # in the order of execution
        if large.isdisjoint(node.input):
            continue
        found.append(node.name)
        if node.op_type != "Softmax":
            large.update(node.output)
    return found


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
