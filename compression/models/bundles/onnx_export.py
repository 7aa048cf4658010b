"""Export of a student to ONNX, which runs without torch, and its static quantization to int8.

Static quantization with ONNX Runtime's own tool: weights int8 per channel, activations int8 with ranges observed on the
calibration inputs, written as pairs of QuantizeLinear and DequantizeLinear (B. Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2; S. R. Jain et al., 2020).

Needs the packages onnx and onnxruntime: the extra `onnx`.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference
from torch import Tensor, nn

from fedpress.compression.models.bundles.onnx_runtime import INPUT, OnnxError
from fedpress.compression.models.quantization import quantization_aware

OPSET = 17
BATCH = 64
"""Calibration inputs in a forward pass."""


def export(model: nn.Module, example_input: Tensor) -> bytes:
    """Return a model as float32 ONNX with one input of any batch size.

    Args:
        model: Traceable model, without branches that depend on data; untouched.
        example_input: Batch of inputs, (N, ...).

    Raises:
        OnnxError: A layer has no counterpart in ONNX.
    """
    plain, _ = quantization_aware.finish(model)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The newer exporter takes ten times as long and needs one more package; this one is deprecated.
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
    """
    if not len(calibration):
        raise ValueError("static quantization needs calibration inputs, got none: does the task hold out a proxy part?")
    # From a file: ONNX Runtime 1.30 loses the weights of a model in memory.
    with _quiet(), tempfile.NamedTemporaryFile(suffix=".onnx") as file:
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
    """Silence the quantizer's advice on the root logger and its warnings about its own code."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
