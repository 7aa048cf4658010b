"""ONNX Runtime: a graph gives its answers without torch, and nothing is read but the bytes of the file."""

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fedpress.compression.models.bundles import onnx_runtime  # noqa: E402

WEIGHTS = np.array([[1.0, -1.0, 0.5], [2.0, 0.0, -3.0]], np.float32)


def graph(node: str = "MatMul") -> "onnx.ModelProto":
    """A product with `WEIGHTS`, (N, 2) to (N, 3)."""
    inputs = helper.make_tensor_value_info(onnx_runtime.INPUT, TensorProto.FLOAT, ["N", 2])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])
    nodes = [helper.make_node(node, [onnx_runtime.INPUT, "weights"], ["output"])]
    initializers = [numpy_helper.from_array(WEIGHTS, "weights")]
    made = helper.make_graph(nodes, "product", [inputs], [output], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("count", [1, 5])
def test_a_graph_answers_any_number_of_inputs(count: int) -> None:
    inputs = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    answers = onnx_runtime.runner(graph().SerializeToString())(inputs)
    np.testing.assert_allclose(answers, inputs @ WEIGHTS, rtol=1e-6)


def external(tensor: "onnx.TensorProto", file: Path) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(file)


@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_a_model_that_wants_other_files_is_refused(place: str, tmp_path: Path) -> None:
    model = graph()
    if place == "initializer":
        external(model.graph.initializer[0], tmp_path / "secret")
    else:
        hidden = helper.make_node("Constant", [], ["hidden"], value=numpy_helper.from_array(WEIGHTS))
        external(hidden.attribute[0].t, tmp_path / "secret")
        model.graph.node.append(hidden)
    with pytest.raises(onnx_runtime.ExternalData, match="whole"):
        onnx_runtime.runner(model.SerializeToString())


@pytest.mark.parametrize("data", [b"no model at all", b"\x08\x07", b"", graph("Unheard").SerializeToString()])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(onnx_runtime.OnnxError):
        onnx_runtime.runner(data)
