"""Batches of one example and batch normalization."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models import batches


def normalized(*, track: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=track), nn.ReLU(), nn.Linear(4, 2))


@given(st.integers(1, 60), st.integers(1, 20), st.booleans())
def test_every_example_is_in_one_batch_and_none_is_alone_that_need_not_be(count: int, size: int, norm: bool) -> None:
    order = torch.randperm(count)
    parts = batches.split(order, size, normalized() if norm else nn.Linear(3, 2))
    assert torch.equal(torch.cat(list(parts)), order)
    assert len(parts) == batches.count(count, size, normalized() if norm else nn.Linear(3, 2))
    assert all(len(part) <= size + norm for part in parts)
    if norm and size > 1 and count > 1:
        assert all(len(part) > 1 for part in parts)
    if not norm:
        assert [len(part) for part in parts] == [len(part) for part in torch.split(order, size)]


def test_one_value_a_channel_is_normalized_by_running_statistics_which_stay() -> None:
    model, one = normalized().train(), torch.randn(1, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        normalized().train()(one)
    with batches.lone_examples(model):
        alone, state = model(one), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        alone.sum().backward()
        several = model(torch.randn(5, 3))
    assert model[1].weight.grad is not None and all(module.training for module in model.modules())
    assert not torch.equal(model[1].running_mean, state["1.running_mean"])  # by the five, not by the one
    assert state["1.num_batches_tracked"] == 0 and several.shape == (5, 2)
    with torch.no_grad():
        model.load_state_dict(state)
        assert torch.equal(model.eval()(one), alone)


def test_an_image_has_many_values_a_channel_and_is_treated_as_ever() -> None:
    model, image = nn.BatchNorm2d(2).train(), torch.randn(1, 2, 4, 4)
    expected = nn.BatchNorm2d(2).train()(image)
    with batches.lone_examples(model):
        assert torch.equal(model(image), expected)
    assert model.num_batches_tracked == 1


def test_without_running_statistics_one_value_stays_an_error_and_modes_are_as_before() -> None:
    model = normalized(track=False).train()
    with batches.lone_examples(model), pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3))
    assert model[1].training and not model[1]._forward_pre_hooks
