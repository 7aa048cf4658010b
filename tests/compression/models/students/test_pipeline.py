"""The steps of a student on real data: each changes what it should, and what it did is recorded truly."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.settings import Assistants, DataFree, Distillation, LearningData
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import pipeline
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.pipeline import StudentEvaluator
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import Digits

TASK = Digits()
SMALL = Budget(parameters=3_000)
QUICK = Distillation(epochs=4)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, train = TASK.model(), TASK.data().train
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(6):
        for batch in torch.randperm(len(train.targets)).split(20):
            optimizer.zero_grad()
            TASK.loss(model(train.inputs[batch]), train.targets[batch]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def evaluator(teacher: nn.Module) -> StudentEvaluator:
    return StudentEvaluator(teacher, TASK, TASK.data().test)


def materials(teacher: nn.Module, early: nn.Module | None = None) -> Materials:
    return Materials(teacher, TASK, TASK.data().proxy.inputs, None, teachers.of(teacher), seed=1, early=early)


def make(teacher: nn.Module, evaluator: StudentEvaluator, budget: Budget = SMALL, **settings: Any) -> Student:
    steps = pipeline.standard(budget, **{"distillation": QUICK} | settings)
    return pipeline.run(steps, Student(teacher), materials(teacher), evaluator)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_each_step_is_recorded_as_it_was(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    before = weights(teacher).clone()
    given = materials(teacher)
    prune, learn, quantize = pipeline.standard(SMALL, distillation=QUICK)
    models: list[nn.Module] = []

    def seen(student: Student, materials: Materials) -> Student:
        models.append(student.model)
        return student.after("", student.model)

    student = pipeline.run([prune, seen, learn, seen, quantize], Student(teacher), given, evaluator)
    assert [stage.name for stage in student.stages] == ["teacher", "pruned", "distilled", "quantized"]
    first, pruned, distilled, last = student.stages
    assert torch.equal(before, weights(teacher))
    assert (first.parameters, first.worst_lost) == (structural.parameters_of(teacher), 0.0)
    assert pruned.parameters == distilled.parameters == structural.parameters_of(student.model) <= 3_000
    for stage, model in ((first, teacher), (pruned, models[0]), (distilled, models[1]), (last, student.model)):
        assert stage.accuracy == evaluate(model, TASK, TASK.data().test).accuracy
        assert stage.size_bytes == 4 * structural.parameters_of(model) and stage.latency_ms > 0
    assert student.bias is not None
    worst = student.bias.worst
    assert (last.worst_class, last.worst_lost) == (worst.group, worst.teacher - worst.student)
    assert torch.equal(weights(make(teacher, evaluator).model), weights(student.model))


def test_the_list_of_steps_is_the_steps_run_by_hand(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    steps, given = pipeline.standard(SMALL, distillation=QUICK), materials(teacher)
    student = Student(teacher)
    for step in steps:
        student = step(student, given)
    chained = pipeline.run(steps, Student(teacher), given, evaluator)
    assert torch.equal(weights(student.model), weights(chained.model)) and student.stages == ()


def test_steps_can_be_reordered(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    prune, learn, quantize = pipeline.standard(SMALL, distillation=QUICK)
    student = pipeline.run([learn, prune, learn, quantize], Student(teacher), materials(teacher), evaluator)
    assert [stage.name for stage in student.stages] == ["teacher", "distilled", "pruned", "distilled", "quantized"]
    whole, _, pruned, *_ = (stage.parameters for stage in student.stages)
    assert pruned <= 3_000 < whole


def test_a_fraction_leaves_a_sparse_student_whose_zeros_stay(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    pruning = Pruning(
        granularity="weights", ranking="global", schedule="iterative", steps=3, tolerance=0.05, fine_tune_epochs=2
    )
    student = make(
        teacher,
        evaluator,
        Budget(removed_fraction="auto"),
        pruning=pruning,
        quantization=Quantization(bits=4, qat_epochs=1),
    )
    assert student.curve[0].kept == 1 and student.curve[-1].taken in (True, False) and len(student.curve) > 1
    left = next(step.parameters for step in reversed(student.curve) if step.taken)
    assert student.stages[-1].parameters == left < structural.parameters_of(teacher) / 2
    assert int(weights(student.model).count_nonzero()) <= left
    assert {timing.chosen for timing in student.timings} <= {"dense", "sparse"} and student.timings


def test_a_lottery_ticket_trains_from_early_weights(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    pruning = Pruning(granularity="weights", schedule="lottery", steps=2, fine_tune_epochs=0)
    torch.manual_seed(1)
    early = TASK.model()
    steps = pipeline.standard(Budget(removed_fraction=0.8), pruning=pruning, distillation=Distillation(epochs=20))
    student = pipeline.run(steps, Student(teacher), materials(teacher, early), evaluator)
    untrained = evaluate(early, TASK, TASK.data().test).accuracy
    first, pruned, distilled, _ = student.stages
    assert abs(pruned.accuracy - untrained) < 0.2 < first.accuracy - pruned.accuracy
    assert distilled.accuracy > pruned.accuracy + 0.2 and distilled.parameters == student.curve[-1].parameters
    with pytest.raises(ValueError, match="needs early weights"):
        make(teacher, evaluator, Budget(removed_fraction=0.8), pruning=pruning)


def test_the_quantization_asked_for_is_what_the_tensors_hold(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    student = make(teacher, evaluator, quantization=Quantization(bits=3, group_size=8))
    assert student.tensors is not None
    quantized = [tensor for tensor in student.tensors.values() if isinstance(tensor, Quantized)]
    assert quantized and all(tensor.bits == 3 and tensor.group == 8 for tensor in quantized)
    assert all(np.abs(tensor.codes).max() <= quantized_tensor.levels(3) for tensor in quantized)


def test_quantization_aware_steps_are_judged_once_quantized(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    plain = make(teacher, evaluator, quantization=Quantization(bits=3))
    aware = make(teacher, evaluator, quantization=Quantization(bits=3, qat_epochs=2))
    assert [stage.name for stage in aware.stages] == [stage.name for stage in plain.stages]
    assert not torch.equal(weights(aware.model), weights(plain.model))


def test_assistants_criteria_and_starts_make_other_students(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    plain = weights(make(teacher, evaluator).model)
    helped = make(teacher, evaluator, assistants=Assistants(factor=8))
    assert not torch.equal(weights(helped.model), plain)
    taylor = make(teacher, evaluator, pruning=Pruning(importance="taylor"))
    assert not torch.equal(weights(taylor.model), plain)
    other = make(teacher, evaluator, start=Start("mlp"))
    assert other.architecture == "mlp" and structural.parameters_of(other.model) <= 3_000


def test_a_search_tells_what_it_looked_at(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    student = make(teacher, evaluator, search=Search(candidates=2, finalists=1))
    assert student.candidates[0].chosen
    assert student.candidates[0].parameters == structural.parameters_of(student.model)


def test_a_student_that_has_learned_is_only_quantized(teacher: nn.Module, evaluator: StudentEvaluator) -> None:
    learned = make(teacher, evaluator).model
    begin = Student(learned, "cnn", step="trained")
    student = pipeline.run(pipeline.writing(), begin, materials(teacher), evaluator)
    assert [stage.name for stage in student.stages] == ["teacher", "trained", "quantized"]
    assert student.architecture == "cnn"
    assert (weights(student.model) - weights(learned)).abs().max() < 0.02


def test_what_a_student_learns_on() -> None:
    proxy = TASK.data().proxy
    for labels in (False, True):
        inputs, targets = pipeline.inputs_for((), TASK.model(), TASK, LearningData(labels=labels), seed=0)
        assert torch.equal(inputs, proxy.inputs) and (targets is not None) == labels
    made = LearningData(data_free=DataFree(examples=6, steps=2, batch_size=3, statistics=0.0, disagreement=1.0))
    steps = pipeline.standard(SMALL)
    inputs, targets = pipeline.inputs_for(steps, TASK.model(), TASK, made, seed=0)
    assert inputs.shape == (6, *proxy.inputs.shape[1:]) and targets is None
