"""Executed sparse, a model answers as before; which way is faster is measured, and sparse is where little is left."""

import pytest
import torch
from torch import nn

from fedpress.compression.models import masks
from fedpress.compression.models.pruning import sparse_kernels, weights
from fedpress.compression.models.pruning.sparse_kernels import SparseConv2d, SparseError, SparseLinear


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def sparse(layer: nn.Module, density: float = 0.1) -> nn.Module:
    masks.apply(layer, weights.by_importance(layer, density))
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 20), (3, 5, 20)])
def test_a_sparse_linear_layer_answers_as_the_dense_one(bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = sparse(nn.Linear(20, 6, bias=bias)), torch.randn(shape)
    torch.testing.assert_close(SparseLinear(layer)(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 5),
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
        nn.Conv2d(3, 8, 3, dilation=2, padding=1),
    ],
    ids=["plain", "strided", "dilated"],
)
def test_a_sparse_convolution_answers_as_the_dense_one(layer: nn.Conv2d) -> None:
    x = torch.randn(4, 3, 12, 9)
    sparse(layer, 0.2)
    torch.testing.assert_close(SparseConv2d(layer)(x), layer(x), atol=1e-5, rtol=1e-4)


def test_each_layer_keeps_the_faster_way_and_answers_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(64, 2048),
        nn.ReLU(),
        nn.Linear(2048, 1024),
        nn.Linear(1024, 3),
    )
    for index, density in ((0, 0.3), (2, 0.3), (4, 0.3), (6, 0.001)):
        sparse(model[index], density)
    x = torch.randn(32, 1, 8, 8)
    found, timings = sparse_kernels.faster(model, x, seconds=0.02)
    by_name = {timing.layer: timing for timing in timings}
    assert by_name.keys() == {"0", "4", "6"}  # 2 is grouped, 7 is dense
    assert by_name["6"].chosen == "sparse" and by_name["6"].density == pytest.approx(0.001, rel=0.01)
    for timing in timings:
        assert (timing.sparse_ms < timing.dense_ms) == (timing.chosen == "sparse")
        layer = found.get_submodule(timing.layer)
        assert isinstance(layer, SparseLinear | SparseConv2d) == (timing.chosen == "sparse")
    assert isinstance(model[6], nn.Linear)
    torch.testing.assert_close(found(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_blocks_of_2_4_are_refused() -> None:
    with pytest.raises(SparseError, match="there is none"):
        sparse_kernels.semi_structured(nn.Linear(64, 32))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_of_2_4_answer_as_the_dense_layer_on_a_gpu() -> None:
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10))
    with pytest.raises(SparseError, match="prune it to 2:4"):
        sparse_kernels.semi_structured(model)
    masks.apply(model, weights.semi_structured(model))
    found, x = sparse_kernels.semi_structured(model), torch.randn(64, 128)
    expected = model.half().cuda()(x.half().cuda())
    torch.testing.assert_close(found(x.half().cuda()), expected, atol=1e-2, rtol=1e-2)
