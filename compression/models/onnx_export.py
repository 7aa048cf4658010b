"""A student as an ONNX file that runs without torch: exported, then quantised to int8 with calibration data.

Static quantisation with ONNX Runtime's own tool: weights int8 per channel, activations int8 with ranges seen on the
calibration inputs, written as pairs of QuantizeLinear and DequantizeLinear (B. Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2; S. R. Jain et al., 2020).

Needs the packages onnx and onnxruntime: `pip install 'fedpress[onnx]'`.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import aware

INPUT = "input"
OPSET = 17
BATCH = 64


class OnnxError(FedpressError, ValueError):
    """A model cannot be exported, or bytes are not a model that may be run."""


class ExternalData(OnnxError):
    """The model wants to read files beside it, which one out of a bundle must not."""


def export(model: nn.Module, example_input: Tensor) -> bytes:
    """Return the model as float32 ONNX with one input of any batch size; it is untouched.

    Args:
        model: A traceable one: no branch that depends on data.
        example_input: A batch as the model is called with, (N, ...).

    Raises:
        OnnxError: A layer has no counterpart in ONNX.
    """
    plain, _ = aware.finish(model)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter of torch.export takes ten times as long and one more package; this one may be gone some day.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                plain.cpu().eval(),
                (example_input[:1],),
                file,  # type: ignore[arg-type]  # of the other exporter
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=["output"],
                dynamic_axes={INPUT: {0: "N"}, "output": {0: "N"}},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise OnnxError(f"the model cannot be exported to ONNX: {error}") from error
    return file.getvalue()


class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calibration inputs, some at a time."""

    def __init__(self, inputs: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(torch.split(inputs, BATCH))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def quantize_static(model: bytes, calibration: Tensor) -> bytes:
    """Return a float32 ONNX model with int8 weights per channel and int8 activations.

    Args:
        model: As `export` makes it.
        calibration: Inputs (N, ...); the ranges of activations are what is seen on them.

    Raises:
        ValueError: There are no calibration inputs.
    """
    if not len(calibration):
        raise ValueError("static quantisation needs calibration inputs, got none: does the task hold out a proxy part?")
    with _quiet():
        prepared = io.BytesIO()
        shape_inference.quant_pre_process(onnx.load_from_string(model), prepared, skip_symbolic_shape=True)
        quantised = io.BytesIO()
        quantization.quantize_static(
            onnx.load_from_string(prepared.getvalue()),
            quantised,
            _Batches(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return quantised.getvalue()


class Runner(NamedTuple):
    """A model in ONNX Runtime, on one thread of the CPU."""

    session: onnxruntime.InferenceSession

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Answers to a batch (N, ...)."""
        answer: NDArray[np.float32] = self.session.run(None, {INPUT: inputs})[0]
        return answer


def runner(model: bytes) -> Runner:
    """Return a model ready to run.

    Nothing is read but these bytes: a model that names files beside it is refused.

    Raises:
        ExternalData: It names files.
        OnnxError: ONNX Runtime does not take it.
    """
    try:
        parsed = onnx.load_from_string(model)
    except DecodeError as error:
        raise OnnxError(f"the {len(model):,} bytes are no ONNX model: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(parsed)):
        raise ExternalData("the model keeps weights in files beside it: a bundle's model must be whole")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes share no base but Exception
        raise OnnxError(f"ONNX Runtime refuses the model: {error}") from error
    return Runner(session)


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever it is: initialisers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser's advice on the root logger, and its warnings about its own code, are of no use here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
