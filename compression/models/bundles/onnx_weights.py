"""ONNX models in a bundle without the weights that the bundle holds anyway, and with them again on the device.

A weight of the graph that follows from one of the student's tensors is left out: the tensor itself or its transpose;
or its int8 code, which the scale and zero point of its `DequantizeLinear` give. What follows from none, such as
a convolution with the normalization behind it folded in, stays in the graph. A tensor that is left out is marked as
ONNX marks weights in other files, with the name of the tensor of the bundle for a location.

Law: `filled(without(graph, tensors), tensors)` has the weights of `graph` to the bit.

Needs the package onnx: the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedpress.compression.models.bundles.onnx_runtime import OnnxError
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Tensors

LEAST: Final = 256
"""Entries of a tensor from which on it is left out."""
LOCATION: Final = "bundle:"
"""Beginning of the location of a tensor that is left out; what follows is the name of the bundle's tensor."""
TRANSPOSED: Final = "transposed"
"""Key of a tensor that is the transpose of the bundle's."""
MOST_TIMES: Final = 4
"""How often a weight of the bundle may be in a graph, on average: tied ones are there more than once."""
_SAMPLE: Final = 64


class _Rounding(NamedTuple):
    """How codes follow from a weight: scale and zero point, which broadcast against it."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8]

    def codes(self, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the codes of a weight, as ONNX Runtime's quantizer rounds it."""
        rounded = (weight / self.scale).round() + self.zero_point
        return np.asarray(rounded.clip(-128, 127), np.int8)


def without(graph: bytes, tensors: Tensors) -> bytes:
    """Return an ONNX model without the weights that follow from the tensors of a bundle.

    Args:
        graph: The model, whole.
        tensors: Tensors of the student that it was exported from, by name.
    """
    model = onnx.load_from_string(graph)
    weights = _weights(tensors)
    by_shape: dict[tuple[int, ...], list[tuple[str, bool]]] = {}
    for name, weight in weights.items():
        by_shape.setdefault(weight.shape, []).append((name, False))
        if weight.ndim == 2:
            by_shape.setdefault(weight.shape[::-1], []).append((name, True))
    for tensor, rounding in _candidates(model):
        expected = onnx.numpy_helper.to_array(tensor)
        for name, transposed in by_shape.get(tuple(tensor.dims), []):
            if _follows(expected, weights[name].T if transposed else weights[name], rounding):
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
                tensor.ClearField("int32_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=LOCATION + name)
                if transposed:
                    tensor.external_data.add(key=TRANSPOSED, value="1")
                break
    return bytes(model.SerializeToString())


def filled(graph: bytes, tensors: Tensors) -> bytes:
    """Return an ONNX model with its weights again, those left out as they follow from the tensors of its bundle.

    Args:
        graph: The model, as `without` returns it; a whole one is returned as it is.
        tensors: Tensors of the bundle, by name.

    Raises:
        OnnxError: The bytes are no ONNX model, or what is left out does not follow from these tensors.
    """
    try:
        model = onnx.load_from_string(graph)
    except DecodeError as error:
        raise OnnxError(f"the {len(graph):,} bytes are no ONNX model: {error}") from error
    missing = [
        (tensor, rounding)
        for tensor, rounding in _candidates(model, least=0)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    if not missing:
        return graph
    weights = _weights(tensors)
    most = MOST_TIMES * sum(weight.size for weight in weights.values())
    if (entries := sum(int(np.prod(tensor.dims, dtype=np.float64)) for tensor, _ in missing)) > most:
        raise OnnxError(f"the ONNX model takes {entries:,} weights from the bundle, at most {most:,} are given")
    for tensor, rounding in missing:
        entry = {each.key: each.value for each in tensor.external_data}
        location = entry.get("location", "")
        name = location.removeprefix(LOCATION)
        if not location.startswith(LOCATION):
            continue  # of a file, which `onnx_runtime` refuses
        weight = weights.get(name)
        if weight is not None and entry.get(TRANSPOSED) and weight.ndim == 2:
            weight = weight.T
        if weight is None or weight.shape != tuple(tensor.dims):
            has = "no such tensor" if weight is None else f"one of {weight.shape}"
            raise OnnxError(
                f"the ONNX model takes {tensor.name!r}, {tuple(tensor.dims)}, from the bundle's {name!r}, and there is"
                f" {has}: is it of another bundle?"
            )
        array: NDArray[Any] = weight
        if rounding is not None:
            array = rounding.codes(weight)
        elif tensor.data_type != onnx.TensorProto.FLOAT:
            raise OnnxError(f"the ONNX model takes {tensor.name!r} from the bundle, with no scale to round it by")
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return bytes(model.SerializeToString())


def _weights(tensors: Tensors) -> dict[str, NDArray[np.float32]]:
    """Return the float tensors of a student as a device computes with them, by name."""
    return {name: array for name, array in quantized_tensor.dequantize(tensors).items() if array.dtype == np.float32}


def _candidates(model: onnx.ModelProto, least: int = LEAST) -> Iterator[tuple[onnx.TensorProto, _Rounding | None]]:
    """Yield the float32 tensors of a graph, and int8 ones that are dequantized, with how these were rounded."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    roundings = dict(_roundings(model, constants))
    for tensor in constants.values():
        if np.prod(tensor.dims, dtype=np.int64) < least:
            continue
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor, None
        elif tensor.name in roundings:
            yield tensor, roundings[tensor.name]


def _roundings(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[tuple[str, _Rounding]]:
    """Yield how int8 tensors of a graph were rounded, by name: what dequantizes them says it."""
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) != 3:
            continue
        codes, *others = (constants.get(name) for name in node.input)
        if codes is None or codes.data_type != onnx.TensorProto.INT8 or not codes.dims:
            continue
        known = [part for part in others if part is not None and part.data_location != onnx.TensorProto.EXTERNAL]
        if len(known) != len(others):
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1) % len(codes.dims)
        shape = [-1 if number == axis else 1 for number in range(len(codes.dims))]
        arrays = [onnx.numpy_helper.to_array(part) for part in known]
        if all(array.size in (1, codes.dims[axis]) for array in arrays):
            yield (
                codes.name,
                _Rounding(*(array.reshape(shape if array.size > 1 else [1] * len(shape)) for array in arrays)),
            )


def _follows(expected: NDArray[Any], weight: NDArray[np.float32], rounding: _Rounding | None) -> bool:
    """Return whether a tensor of a graph is a weight, or its codes."""
    if rounding is None:
        few = np.array_equal(expected.flat[:_SAMPLE], weight.flat[:_SAMPLE])
        return few and np.array_equal(expected, weight)
    with np.errstate(all="ignore"):
        few = rounding.scale.size == 1 or rounding.scale.shape[0] == 1 or len(expected) < 2
        if few and not np.array_equal(rounding.codes(weight[:1]), expected[:1]):
            return False
        return np.array_equal(rounding.codes(weight), expected)
