"""Int8 graphs: what hides padding from attention is no activation, whose range would be that of all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.apps import texts  # noqa: E402

from fedpress.compression.models import inputs as model_inputs  # noqa: E402
from fedpress.compression.models.bundles import onnx_export, onnx_quantization  # noqa: E402


class Masked(nn.Module):
    """Attention whose mask is added as a large negative number."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.hidden = texts.Pooled(), hidden
        for layer in (self.inner.query, self.inner.key):
            layer.weight.data *= 6  # attention that matters

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        inner = self.inner
        x = inner.embedding(ids)
        scores = inner.query(x) @ inner.key(x).transpose(1, 2) / 4
        scores = scores + torch.where(mask[:, None].bool(), 0.0, self.hidden)
        x = x + scores.softmax(-1) @ inner.value(x)
        return inner.head(torch.relu(inner.hidden(x))[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("hidden", [torch.finfo(torch.float32).min, -1e9, -1e4, float("-inf")])
def test_attention_is_as_good_in_int8_whatever_hides_padding(hidden: float) -> None:
    model, inputs = Masked(hidden).eval(), texts.Texts().data().train.inputs
    batch = model_inputs.first(inputs, 64)
    graph = onnx_export.Graph(onnx_quantization.quantize_static(onnx_export.export(model, inputs), inputs))
    with torch.no_grad():
        expected = model(**batch)
    off = (graph(**batch) - expected).abs().max() / expected.abs().max()
    assert off < 0.05


def test_nodes_between_a_mask_and_its_softmax_stay_as_they_are() -> None:
    inputs = texts.Texts().data().train.inputs
    quantized = onnx.load_from_string(
        onnx_quantization.quantize_static(onnx_export.export(Masked(-1e9).eval(), inputs), inputs)
    )
    scales = [
        onnx.numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer if tensor.name.endswith("_scale")
    ]
    assert scales and max(float(np.abs(scale).max()) for scale in scales) < 1e3
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("MatMul") + kinds.count("Gemm") >= 5 and "QuantizeLinear" in kinds
