"""Where a student starts: the teacher or another architecture, all blocks or fewer, within the budget."""

import pytest
import torch
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.students import depth
from fedpress.compression.models.students.initial_student import Start, UnknownArchitecture, start_of
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import MODELS, Digits

EXAMPLE = torch.rand(1, 1, 8, 8)


def made(budget: Budget, start: Start, task: Digits | None = None, seed: int = 0) -> nn.Module:
    task = task or Digits()
    torch.manual_seed(0)
    return start_of(task, task.model(), EXAMPLE, budget, start, seed=seed)


def test_without_a_name_the_teacher_is_pruned() -> None:
    found = made(Budget(parameters=0.1), Start())
    assert isinstance(found[0], nn.Conv2d) and structural.parameters_of(found) <= 10_522  # type: ignore[index]


def test_another_architecture_is_fresh_and_cut_to_the_budget() -> None:
    # A fraction is of the teacher's 105,226 parameters, not of the perceptron's 4,810.
    whole, cut = made(Budget(parameters=0.5), Start("mlp")), made(Budget(parameters=0.02), Start("mlp"))
    assert structural.parameters_of(whole) == 4_810 and 1_500 < structural.parameters_of(cut) <= 2_104
    assert torch.equal(made(Budget(parameters=0.5), Start("mlp"))[1].weight, whole[1].weight)  # type: ignore[index]
    assert not torch.equal(made(Budget(parameters=0.5), Start("mlp"), seed=1)[1].weight, whole[1].weight)  # type: ignore[index]
    fresh = MODELS["mlp"]()  # as a client rebuilds it: by name and shapes
    architecture.shrink(fresh, architecture.shapes(cut))
    fresh.load_state_dict(cut.state_dict())
    assert torch.equal(fresh(EXAMPLE), cut(EXAMPLE))


def test_layers_are_dropped_before_the_rest_is_pruned() -> None:
    task = Digits(model="vit")
    found = made(Budget(parameters=0.5), Start(keep_every=2), task)
    assert depth.depth_of(found) == 1 and structural.parameters_of(found) <= structural.parameters_of(task.model()) / 2


def test_what_the_task_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownArchitecture, match="'digits' has no student 'gru'; it has cnn, cnn-bn, mlp, vit"):
        made(Budget(parameters=0.5), Start("gru"))
    with pytest.raises(architecture.UnsupportedLayer, match="no architecture.Stack"):
        made(Budget(parameters=0.5), Start("mlp", keep_every=2))
    with pytest.raises(ValueError, match="keep_every must be at least 1, got 0"):
        Start(keep_every=0)


def test_a_perceptron_learns_from_a_convolutional_network() -> None:
    task = Digits()
    splits = task.data()
    torch.manual_seed(0)
    teacher = task.model()
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(3):
        for batch in torch.randperm(len(splits.train.targets)).split(50):
            optimizer.zero_grad()
            task.loss(teacher(splits.train.inputs[batch]), splits.train.targets[batch]).backward()
            optimizer.step()
    start = start_of(task, teacher, EXAMPLE, Budget(parameters=0.5), Start("mlp"), seed=0)
    learned = distill(teacher, start, splits.proxy.inputs, Distillation(epochs=40), seed=0)
    assert evaluate(learned, task, splits.test).accuracy > 0.85 > evaluate(start, task, splits.test).accuracy
