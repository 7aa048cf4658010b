"""Passes that follow channels or leave them out: exact also where a zero would count, bounded in time, never random."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedpress.compression.models.pruning.channel_flow import Absent, Flow, PruneError, Steady, placed
from fedpress.compression.models.pruning.channel_labels import LabelSets, TensorLabels

LEFT = [0, 2, 3, 6, 7]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.mean(1),
        lambda x: x.sum(1, keepdim=True),
        lambda x: x.amax(1),
        lambda x: x.max(dim=1).values,
        lambda x: x.mean(),
        lambda x: x.var(1),
        lambda x: torch.logsumexp(x, 1),
        lambda x: x.norm(dim=1),
        lambda x: torch.linalg.vector_norm(x, 1, (1, 2)),
        lambda x: F.normalize(x, dim=1).sum(1),
        lambda x: (x.softmax(1) * x).sum(1),
        lambda x: x.log_softmax(1).amin(1),
        lambda x: F.layer_norm(x.mT, x.shape[1:2]).sum(2),
        lambda x: F.rms_norm(x.mT, x.shape[1:2]).sum(2),
        lambda x: F.group_norm(x, 1).sum(1),
        lambda x: x.mT @ x,
        lambda x: (1 + F.elu(x)).mT @ (1 + F.elu(x)),
        lambda x: torch.einsum("ncl,ncm->nlm", x.exp(), x.exp()),
    ],
)
def test_what_is_left_out_counts_for_nothing(operation: Callable[[Tensor], Tensor]) -> None:
    x, sets = torch.randn(2, 8, 5, dtype=torch.float64), LabelSets()
    channels = sets.new(8)
    labels = TensorLabels([(x, [np.zeros(2, np.int64), channels, np.zeros(5, np.int64)])], sets)
    gone = np.delete(channels, LEFT)
    with torch.no_grad(), Absent(labels, sets, gone, 60):
        found = operation(x)
    torch.testing.assert_close(found, operation(x[:, LEFT]))


def test_a_group_norm_has_a_channel_less_in_each_group() -> None:
    norm, x = nn.GroupNorm(2, 6).double(), torch.randn(2, 1, 4, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    sets = LabelSets()
    channels = sets.new(6)
    own = [(norm.weight, [channels]), (norm.bias, [sets.new(6)])]
    with torch.no_grad(), Flow(TensorLabels(own, sets), 60):
        norm(x * norm.weight[:, None])
    with torch.no_grad(), Absent(TensorLabels(own, sets), sets, channels[1:2], 60):
        found = norm(x * norm.weight[:, None])
    left, scale = [0, 2, 3, 5], norm.weight.detach()
    torch.testing.assert_close(
        found[:, left], F.group_norm((x * scale[:, None])[:, left], 2, scale[left], norm.bias.detach()[left])
    )


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.2)
        return x + 1


def test_a_pass_that_takes_too_long_is_given_up_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Slow(), nn.Sequential(nn.ReLU()))
    with pytest.raises(PruneError, match=r"takes longer than 0\.1 s; it was in layer '1'"):
        with placed(model, Steady(0.1)):
            model(torch.zeros(1, 2))
    assert model(torch.zeros(1, 2)).shape == (1, 2)  # without hooks that were left behind
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_is_drawn() -> None:
    def noisy(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True) + torch.randn_like(x) + torch.rand(3) * torch.randint(9, (3,))

    x, before = torch.ones(2, 3), torch.random.get_rng_state()
    with torch.no_grad(), Steady(60):
        first = noisy(x)
    with torch.no_grad(), Steady(60):
        second = noisy(x)
    assert torch.equal(first, second)
    torch.random.set_rng_state(before)


def test_fused_kernels_of_inference_do_not_hide_a_layer() -> None:
    """torch runs a whole encoder layer as one operation where it can."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    sets = LabelSets()
    channels = sets.new(12)
    first = layer.linear1
    labels = TensorLabels([(first.weight, [channels, np.zeros(8, np.int64)]), (first.bias, [channels])], sets)
    with placed(layer, Flow(labels, 60)):
        layer(torch.randn(2, 3, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert {sets.reason(int(label)) for label in channels} == {"addmm in layer 'linear2'"}  # a weight without labels
