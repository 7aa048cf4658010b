"""An ONNX model without the bundle's weights is small, and has them again to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantized_tensor import Tensors
from fedpress.compression.models.quantization.settings import Quantization

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
from fedpress.compression.models.bundles import (  # noqa: E402
    onnx_export,
    onnx_quantization,
    onnx_runtime,
    onnx_weights,
)


class Net(nn.Module):
    """Ids, looked up; a product whose weight ONNX transposes; a convolution with its normalization; a tied product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.outer = nn.Embedding(60, 32), nn.Linear(32, 48), nn.Linear(48, 32)
        self.mix, self.norm = nn.Conv1d(32, 32, 3, padding=1), nn.BatchNorm1d(32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids (N, L) to scores (N, 60)."""
        hidden = self.table(ids)
        hidden = hidden + self.outer(self.inner(hidden).relu())
        mixed = self.norm(self.mix(hidden.transpose(1, 2))).mean(2)
        scores: torch.Tensor = mixed @ self.table.weight.T
        return scores


IDS = torch.randint(0, 60, (70, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return quantize.quantize(Net().eval(), Quantization(bits=4, group_size=16))


@pytest.fixture(scope="module")
def graphs(tensors: Tensors) -> dict[str, bytes]:
    whole = onnx_export.export(quantize.applied(Net().eval(), tensors), IDS)
    return {"float32": whole, "int8": onnx_quantization.quantize_static(whole, IDS)}


def constants(graph: bytes) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer}


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_what_is_left_out_comes_back_to_the_bit(kind: str, graphs: dict[str, bytes], tensors: Tensors) -> None:
    graph = graphs[kind]
    small = onnx_weights.without(graph, tensors)
    assert len(small) < 0.75 * len(graph)
    with pytest.raises(onnx_runtime.ExternalData):
        onnx_runtime.runner(small)
    again = onnx_weights.filled(small, tensors)
    before, after = constants(graph), constants(again)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype and np.array_equal(array, after[name]), name
    answers, expected = (onnx_runtime.runner(each)(IDS.numpy()) for each in (again, graph))
    assert np.array_equal(answers, expected)
    assert onnx_weights.filled(graph, tensors) == graph


def test_weights_of_no_tensor_stay_in_the_graph(graphs: dict[str, bytes], tensors: Tensors) -> None:
    others = quantize.quantize(Net().eval(), Quantization(bits=3))
    assert constants(onnx_weights.without(graphs["int8"], others)).keys() == constants(graphs["int8"]).keys()


def test_a_graph_of_another_bundle_is_refused(graphs: dict[str, bytes], tensors: Tensors) -> None:
    small = onnx_weights.without(graphs["int8"], tensors)
    with pytest.raises(onnx_runtime.OnnxError, match="from the bundle's 'inner.weight'.*no such tensor"):
        onnx_weights.filled(small, {name: tensor for name, tensor in tensors.items() if name != "inner.weight"})
    narrow = tensors | {"inner.weight": np.zeros((4, 32), np.float32)}
    with pytest.raises(onnx_runtime.OnnxError, match=r"one of \(32, 4\)|one of \(4, 32\)"):
        onnx_weights.filled(small, narrow)
    with pytest.raises(onnx_runtime.OnnxError, match="no ONNX model"):
        onnx_weights.filled(b"\xff\xff", tensors)


def test_a_small_graph_cannot_fill_the_memory(graphs: dict[str, bytes], tensors: Tensors) -> None:
    model = onnx.load_from_string(onnx_weights.without(graphs["float32"], tensors))
    taken = next(one for one in model.graph.initializer if one.external_data)
    for number in range(200):
        copy = model.graph.initializer.add()
        copy.CopyFrom(taken)
        copy.name = f"copy{number}"
    with pytest.raises(onnx_runtime.OnnxError, match="at most"):
        onnx_weights.filled(model.SerializeToString(), tensors)


def test_weights_in_files_stay_what_they_are(graphs: dict[str, bytes], tensors: Tensors) -> None:
    model = onnx.load_from_string(onnx_weights.without(graphs["float32"], tensors))
    taken = next(one for one in model.graph.initializer if one.external_data)
    taken.external_data[0].value = "/etc/passwd"
    with pytest.raises(onnx_runtime.ExternalData):
        onnx_runtime.runner(onnx_weights.filled(model.SerializeToString(), tensors))
