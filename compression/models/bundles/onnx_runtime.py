"""A student's ONNX file in ONNX Runtime: no torch, and nothing read but the bytes of the file.

Needs the packages onnx and onnxruntime: `pip install 'fedpress[onnx]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError

INPUT = "input"


class OnnxError(FedpressError, ValueError):
    """A model cannot be exported, or bytes are not a model that may be run."""


class ExternalData(OnnxError):
    """The model wants to read files beside it, which one out of a bundle must not."""


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
    """Every tensor of a model, wherever it is: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)
