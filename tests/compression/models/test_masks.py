"""Whatever trains within a mask stays in it, and leaves ordinary weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import masks
from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import weights


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.LSTM(4, 8, batch_first=True)


def test_training_within_a_mask_stays_in_it_and_leaves_ordinary_weights() -> None:
    network, x = recurrent(), torch.randn(3, 6, 4)
    found = weights.by_importance(network, 0.3)
    whole = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def train(masked: nn.Module) -> nn.Module:
        learner = copy.deepcopy(masked)
        optimizer = torch.optim.AdamW(learner.parameters(), 0.01, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(learner(x)[0].square().sum())
            optimizer.step()
        assert not torch.equal(learner(x)[0], masked(x)[0])
        answers.append(learner(x)[0])
        return learner

    answers: list[Tensor] = []
    learner = masks.train_within(network, found, train)

    masks.check(learner, found)
    assert torch.equal(learner(x)[0], answers[0])
    assert all(torch.equal(whole[name], tensor) for name, tensor in network.state_dict().items())
    assert learner.state_dict().keys() == whole.keys()


def test_distillation_within_a_mask_stays_in_it() -> None:
    teacher, student = model(1), model(2)
    found = weights.by_importance(student, 0.2)
    settings = Distillation(epochs=2)
    inputs = torch.rand(64, 1, 8, 8)
    learner = masks.train_within(
        student, found, lambda masked: distill.distill(teacher, masked, inputs, settings, seed=0)
    )
    masks.check(learner, found)
    assert weights.density({name: weight != 0 for name, weight in masks.weights_of(learner).items()}) > 0.15
    assert float(learner.state_dict()["1.num_batches_tracked"]) == 4


def test_a_weight_outside_the_mask_is_found() -> None:
    network = model()
    found = weights.by_importance(network, 0.2)
    with pytest.raises(masks.MaskError, match="trained outside"):
        masks.check(network, found)
    masks.apply(network, found)
    masks.check(network, found)
    assert weights.parameters_left(network, found) == 16 + 8 + 20 + 4 + sum(int(mask.sum()) for mask in found.values())


def test_a_mask_of_another_model_is_refused() -> None:
    found = weights.dense(model())
    with pytest.raises(masks.MaskError, match="another model"):
        masks.apply(nn.Linear(2, 2), found)
    with pytest.raises(masks.MaskError, match=r"\(20, 288\)"):
        masks.train_within(model(), found | {"4.weight": found["0.weight"]}, lambda same: same)


def test_without_a_mask_training_does_as_it_likes() -> None:
    network = model()
    assert masks.train_within(network, None, lambda given: given) is network
