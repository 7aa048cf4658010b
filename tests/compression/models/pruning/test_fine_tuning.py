"""Training between the steps of pruning: reproducible, it teaches, and the model that is given stays what it is."""

import copy

import pytest
import torch
from tests.apps import texts
from torch import nn

from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.outputs import IGNORED, fitted
from fedpress.compression.models.pruning import fine_tuning, penalties
from fedpress.compression.models.pruning.fine_tuning import FineTune
from fedpress.compression.models.stored import Collated
from fedpress.compression.models.task import Examples, Splits, Task, evaluate


class Rows(Task):
    """Three numbers, and the class by the sign of their sum."""

    name = "rows"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def data(self) -> Splits:
        raise NotImplementedError


TASK = Rows()
INPUTS = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
EXAMPLES = Examples(INPUTS, (INPUTS.sum(1) > 0).long())


def teacher() -> nn.Module:
    """The rule itself."""
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-5.0] * 3, [5.0] * 3]))
    return model


WAYS = [
    fine_tuning.training(TASK, EXAMPLES, learning_rate=1e-2),
    fine_tuning.distilling(teacher(), INPUTS, Distillation(learning_rate=1e-2)),
]


@pytest.mark.parametrize("train", WAYS, ids=["labels", "distillation"])
def test_it_teaches_the_same_for_the_same_seed_and_leaves_the_model_alone(train: FineTune) -> None:
    model = TASK.model().train()
    model[1].eval()  # a layer that a user froze
    before, generator = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    learned, again, other = (train(model, epochs=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(learned.parameters(), other.parameters(), strict=True))
    assert [module.training for module in learned.modules()] == [module.training for module in model.modules()]
    assert all(parameter.grad is None for each in (model, learned) for parameter in each.parameters())
    assert evaluate(learned, TASK, EXAMPLES).accuracy > max(0.9, evaluate(model, TASK, EXAMPLES).accuracy)


def test_a_penalty_is_part_of_the_loss() -> None:
    free = WAYS[0](TASK.model(), epochs=3, seed=0)
    held = WAYS[0](TASK.model(), epochs=3, seed=0, penalty=lambda model: 0.1 * penalties.l1(model))
    assert float(penalties.l1(held).detach()) < 0.8 * float(penalties.l1(free).detach())


def test_distillation_takes_no_penalty() -> None:
    with pytest.raises(ValueError, match="takes no penalty: train with `training`"):
        WAYS[1](TASK.model(), epochs=1, seed=0, penalty=penalties.l1)


def test_a_teacher_s_first_choices_are_the_targets() -> None:
    model = nn.Sequential(teacher(), nn.Dropout(0.9)).train()  # asked in evaluation mode
    answered = fine_tuning.answered(model, INPUTS.repeat(3, 1))  # more than it answers at a time
    assert torch.equal(answered.inputs, INPUTS.repeat(3, 1)) and torch.equal(
        answered.targets, EXAMPLES.targets.repeat(3)
    )
    assert model.training
    places, inputs = nn.Unflatten(1, (2, 3)), torch.cat([INPUTS, INPUTS.flip(0)], dim=1)
    for axis in (1, 2):  # two classes at three places, or three at two
        expected = places(inputs).argmax(dim=axis)
        assert torch.equal(fine_tuning.answered(places, inputs, axis).targets, expected)


@pytest.mark.parametrize("left", [False, True])
def test_of_sequences_padding_gets_no_answer(left: bool) -> None:
    torch.manual_seed(0)
    teacher = texts.Pooled(places=True).eval()

    def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = texts.collate(rows, names=("ids", "mask"))
        return {name: part.flip(1) if left else part for name, part in batch.items()}

    lists, _ = texts.drawn(600, seed=0)  # more than are answered at once
    lists[:512] = [text[:4] for text in lists[:512]]
    stored = Collated(lists, collate)
    found = fine_tuning.answered(teacher, stored, 1)
    for row in (0, 3, 511, 512, 599):
        single = stored.take(torch.tensor([row]))
        with torch.no_grad():
            expected = teacher(**single).argmax(1)[0]
        answers = found.targets[row]
        assert torch.equal(answers[answers != IGNORED], expected)
        outputs = torch.zeros(1, 3, len(expected))
        assert torch.equal(fitted(found.targets[row : row + 1], outputs, single)[0], expected)
