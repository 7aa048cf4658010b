"""SparseGPT: the density that was asked for, zeros outside the masks, and answers nearer than by magnitude."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression.models.quantization.test_calibrated import net
from torch import Tensor, nn

from fedpress.compression.models import masks
from fedpress.compression.models.pruning import sparsegpt, weights
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Pruning

WEIGHTS = Pruning(granularity="weights", importance="sparsegpt")


@settings(max_examples=15, deadline=None)
@given(first=st.floats(0.05, 1.0), second=st.floats(0.05, 1.0), ranking=st.sampled_from(["uniform", "erk"]))
def test_a_model_has_its_density_and_a_second_mask_lies_within_the_first(
    first: float, second: float, ranking: str
) -> None:
    model, inputs = net()
    before = copy.deepcopy(model.state_dict())
    chosen = Pruning(granularity="weights", importance="sparsegpt", ranking=ranking)  # type: ignore[arg-type]
    sparse, kept = sparsegpt.pruned(model, inputs, first, chosen)
    assert weights.density(kept) == pytest.approx(first, abs=0.02)
    masks.check(sparse, kept)
    again, fewer = sparsegpt.pruned(sparse, inputs, second, chosen, kept)
    masks.check(again, fewer)
    assert all(not bool((fewer[name] & ~kept[name]).any()) for name in kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sparse.training == model.training


@pytest.mark.parametrize("granularity", ["weights", "2:4"])
def test_answers_are_nearer_than_by_magnitude_in_either_layout(
    granularity: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = net()
    wanted = model(inputs).detach()

    def error(sparse: nn.Module) -> float:
        return float((sparse(inputs).detach() - wanted).square().mean())

    chosen = Pruning(granularity=granularity, importance="sparsegpt", ignored=("conv",))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        sparse, kept = sparsegpt.pruned(model, inputs, 0.5, chosen)
    assert "reaches idle.weight: pruned by magnitude" in caplog.text
    plain = copy.deepcopy(model)
    criterion = Criterion(tracing=chosen)
    mask = weights.semi_structured(model, criterion)
    if granularity == "weights":
        mask = weights.by_importance(model, 0.5, criterion)
    masks.apply(plain, mask)
    assert error(sparse) < 0.7 * error(plain)
    assert kept["conv.weight"].all()
    if granularity == "2:4":
        rows: Tensor = kept["transposed.weight"].T
        assert weights.is_semi_structured(rows) and weights.is_semi_structured(kept["one.weight"])
        assert int(kept["one.weight"].sum()) == kept["one.weight"].numel() // 2
