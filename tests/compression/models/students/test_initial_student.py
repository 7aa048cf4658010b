"""Where a student starts: the teacher or another architecture, all blocks or fewer, within the budget."""

import pytest
import torch
from tests.apps.networks import NETWORKS
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.schedule import Prune
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.stacks import NoStack
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import depth
from fedpress.compression.models.students.inheritance import InheritanceError
from fedpress.compression.models.students.initial_student import PruneToBudget, Start, UnknownArchitecture, start_of
from fedpress.compression.models.students.search import SearchStudent
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Examples, Splits, Task, evaluate
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
    found = made(Budget(parameters=0.5), Start(layers=0.5), task)
    assert (
        depth.depth_of(found, EXAMPLE) == 0
        and len(found.blocks) == 1
        and structural.parameters_of(found) <= structural.parameters_of(task.model()) / 2
    )


def test_layers_that_change_least_are_those_that_go() -> None:
    """The inputs that a student learns on decide, without labels; the form does not depend on them."""
    task = Digits(model="vit")
    torch.manual_seed(0)
    teacher, example = task.model(), task.data().proxy.inputs[:1]
    for layer in (teacher.blocks[0].attention.out, teacher.blocks[0].hidden[2]):  # type: ignore[union-attr,index]
        layer.weight.data *= 0.01
    step = PruneToBudget(Budget(parameters=1.0), Start(layers=1))
    step.check(teacher, task)
    student = step(Student(teacher), materials(task, teacher))
    assert student.step == "pruned" and structural.parameters_of(student.model) < structural.parameters_of(teacher)
    kept = student.model.blocks[0].hidden[0].weight  # type: ignore[union-attr,index]
    assert torch.equal(kept, teacher.blocks[1].hidden[0].weight)  # type: ignore[union-attr,index]
    unseen = start_of(task, teacher, example, step.budget, step.start, seed=0)
    assert architecture.shapes(unseen) == architecture.shapes(student.model)


def test_another_architecture_inherits_before_it_is_pruned() -> None:
    task = Digits(model="vit")
    torch.manual_seed(0)
    teacher = task.model()
    heir = start_of(task, teacher, EXAMPLE, Budget(parameters=1.0), Start("vit", inherit="by-name"), seed=5)
    assert all(map(torch.equal, heir.state_dict().values(), teacher.state_dict().values()))
    fewer = Start("vit", layers=1, inherit="by-name")
    assert len(start_of(task, teacher, EXAMPLE, Budget(parameters=1.0), fewer, seed=5).blocks) == 1  # type: ignore[arg-type]
    with pytest.raises(InheritanceError, match="none of the student's 4 tensors has a counterpart"):
        PruneToBudget(Budget(parameters=0.5), Start("mlp", inherit="by-name")).check(teacher, task)


def materials(task: Task, teacher: nn.Module) -> Materials:
    splits = task.data()
    return Materials(teacher, task, splits.proxy.inputs[:64], None, teachers.of(teacher), seed=0)


class Rearranged(Task):
    """A task whose model is one of the networks that rearrange channels."""

    name = "rearranged"

    def __init__(self, network: str) -> None:
        self._make, self._batch = NETWORKS[network]

    def model(self) -> nn.Module:
        return self._make()

    def data(self) -> Splits:
        inputs = self._batch()
        part = Examples(inputs, torch.zeros(len(inputs), dtype=torch.int64))
        return Splits(part, part, part, part)


@pytest.mark.parametrize(
    "network", "BesideTheInput Depthwise OldWeightNormed Permuted Transposed TorchEncoder LlamaOwnNorm".split()
)
def test_a_student_of_any_model_fits_and_comes_back_from_its_shapes(network: str) -> None:
    task = Rearranged(network)
    torch.manual_seed(0)
    teacher, inputs = task.model(), task.data().test.inputs
    budget = Budget(parameters=0.9)
    PruneToBudget(budget).check(teacher, task)
    student = start_of(task, teacher, inputs[:1], budget, seed=0).eval()
    whole = structural.parameters_of(teacher)
    assert 0.5 * whole < structural.parameters_of(student) <= 0.9 * whole
    again = task.model().eval()
    architecture.shrink(again, architecture.shapes(student))
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(inputs), student(inputs))


def test_layers_that_the_settings_ignore_stay_whole() -> None:
    task, budget = Digits(model="vit"), Budget(parameters=0.7)
    torch.manual_seed(0)
    teacher = task.model()
    ignoring = Pruning(ignored=("blocks.*.hidden", "patches"))
    student = PruneToBudget(budget, pruning=ignoring).pruned(teacher, task, seed=0)
    before, after = architecture.shapes(teacher), architecture.shapes(student)
    assert {name for name in before if before[name] != after[name]} and structural.parameters_of(student) < sum(
        parameter.numel() for parameter in teacher.parameters()
    )
    assert all(before[name] == after[name] for name in before if "hidden" in name or "patches" in name)
    for step in (
        PruneToBudget(budget, pruning=Pruning(ignored=("block.*",))),
        SearchStudent(budget, pruning=Pruning(ignored=("block.*",))),
        Prune(0.5, Pruning(ignored=("block.*",))),
        Prune(0.5, Pruning(granularity="weights", ignored=("block.*",))),
    ):
        with pytest.raises(structural.PruneError, match=r"no layer is called 'block\.\*'"):
            step.check(teacher, task)


def test_what_the_task_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownArchitecture, match="'digits' has no student 'gru'; it has cnn, cnn-bn, mlp, vit"):
        made(Budget(parameters=0.5), Start("gru"))
    with pytest.raises(NoStack, match="no blocks that may be dropped"):
        made(Budget(parameters=0.5), Start("mlp", layers=0.5))
    with pytest.raises(ValueError, match="layers is 0, expected a number of blocks >= 1"):
        Start(layers=0)


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
