"""Execution of a student's ONNX model in ONNX Runtime, without torch and from untrusted bytes.

Needs the packages onnx and onnxruntime: the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError

INPUT = "input"


class OnnxError(FedpressError, ValueError):
    """A model cannot be exported, or bytes are no ONNX model that may be run."""


class ExternalData(OnnxError):
    """The model keeps weights in other files, which a model of a bundle must not read."""


class Runner(NamedTuple):
    """An ONNX model ready to run on one thread of the CPU."""

    session: onnxruntime.InferenceSession

    @property
    def output(self) -> str:
        """Name of the output."""
        return str(self.session.get_outputs()[0].name)

    def __call__(self, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the outputs for a batch of inputs (N, ...), or for arrays by the name of the input, each (N, ...).

        Raises:
            OnnxError: ONNX Runtime cannot run the model on them.
        """
        given = inputs if isinstance(inputs, Mapping) else {INPUT: inputs}
        read = {each.name for each in self.session.get_inputs()}  # what a model does not use is no input of its graph
        try:
            outputs: NDArray[np.float32] = self.session.run(
                None, {name: array for name, array in given.items() if name in read}
            )[0]
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise OnnxError(f"ONNX Runtime: {error}") from error
        return outputs


def runner(model: bytes) -> Runner:
    """Load an ONNX model; a model that refers to other files is refused.

    Args:
        model: Bytes of the model.

    Raises:
        ExternalData: The model refers to files.
        OnnxError: The bytes are no ONNX model, or ONNX Runtime rejects it.
    """
    try:
        parsed = onnx.load_from_string(model)
    except DecodeError as error:
        raise OnnxError(f"the {len(model):,} bytes are no ONNX model: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(parsed)):
        raise ExternalData("the model keeps weights in other files: a bundle's model must be whole")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is an OnnxError
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise OnnxError(f"ONNX Runtime rejects the model: {error}") from error
    return Runner(session)


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: of initializers, attributes, subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)
