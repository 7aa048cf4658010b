"""Early exits: one classifier for each stage but the last, and their gradients train the stages below them."""

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.early_exits import Exits
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.distillation.teachers import TeacherError


def vectors() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv1d(4, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(30, 7), nn.ReLU(), nn.Linear(7, 3))
    return model, torch.randn(8, 4, 5)


def images() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
    )
    return model, torch.randn(8, 1, 8, 8)


@pytest.mark.parametrize("make", [images, vectors])
def test_every_stage_but_the_last_answers_each_example(make: object) -> None:
    torch.manual_seed(0)
    model, inputs = make()  # type: ignore[operator]
    exits = Exits(model, inputs, classes=3)
    with stages.recording(model) as record:
        answer = model(inputs)
        logits = exits(record)
    assert len(logits) == len(exits.heads) == len(stages.stages(model, inputs)) - 1 >= 1
    assert all(early.shape == answer.shape == (8, 3) for early in logits)


def test_an_exit_trains_its_classifier_and_the_layers_below_it_alone() -> None:
    torch.manual_seed(0)
    model, inputs = images()
    exits = Exits(model, inputs, classes=3)
    with stages.recording(model) as record:
        model(inputs)
        torch.autograd.backward(exits(record)[0].sum())
    assert model[0].weight.grad is not None and model[0].weight.grad.any()  # type: ignore[index, union-attr]
    assert model[3].weight.grad is None and model[6].weight.grad is None  # type: ignore[index, union-attr]
    assert all(parameter.grad is not None for parameter in exits.heads[0].parameters())


def test_images_are_pooled_to_four_places_for_a_classifier() -> None:
    model, inputs = images()
    assert Exits(model, inputs, classes=3).heads[0].in_features == 4 * 2 * 2  # channels * height * width


def test_exits_need_a_stage_before_the_last() -> None:
    with pytest.raises(TeacherError, match="weights.early_exits needs a student of two stages or more, Linear has 0"):
        weights = LossWeights(early_exits=1.0)
        distill(nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(9, 5), Distillation(weights=weights), seed=0)
