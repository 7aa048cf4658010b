"""The chain on real data: every part of it changes what it should, and what each step did is told truly."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fedpress.compression.models.distillation.distill import Distillation
from fedpress.compression.models.distillation.teacher_assistants import Assistants
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.schedule import Pruning
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantize import Quantization
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.students import pipeline, search
from fedpress.compression.models.students.budgets import Budget
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.pipeline import Judge, StudentArtifact, StudentPipeline, StudentSpec
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import Digits

TASK = Digits()
SMALL = StudentSpec(Budget(parameters=3_000))
QUICK = StudentPipeline(distillation=Distillation(epochs=4))


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
def judge(teacher: nn.Module) -> Judge:
    return Judge(teacher, TASK, TASK.data().test)


def make(
    teacher: nn.Module, judge: Judge, wanted: StudentSpec = SMALL, how: StudentPipeline = QUICK
) -> StudentArtifact:
    return pipeline.make(teacher, TASK, wanted, how, judge=judge, seed=1)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_each_step_is_told_as_it_was(teacher: nn.Module, judge: Judge) -> None:
    before = weights(teacher).clone()
    made = make(teacher, judge)
    assert [stage.name for stage in made.stages] == ["teacher", "pruned", "distilled", "quantized"]
    first, pruned, distilled, last = made.stages
    assert torch.equal(before, weights(teacher))
    assert (first.parameters, first.worst_lost) == (structural.parameters_of(teacher), 0.0)
    assert pruned.parameters == distilled.parameters == structural.parameters_of(made.student) <= 3_000
    for stage, model in ((first, teacher), (distilled, made.student), (last, made.quantized)):
        assert stage.accuracy == evaluate(model, TASK, TASK.data().test).accuracy
        assert stage.size_bytes == 4 * structural.parameters_of(model) and stage.latency_ms > 0
    worst = made.bias.worst
    assert (last.worst_class, last.worst_lost) == (worst.group, worst.teacher - worst.student)
    again = make(teacher, judge)
    assert torch.equal(weights(again.quantized), weights(made.quantized))


def test_a_ratio_leaves_a_sparse_student_whose_zeros_stay(teacher: nn.Module, judge: Judge) -> None:
    settings = Pruning("auto", "weights", ranking="global", schedule="iterative", steps=3, tolerance=0.05,
                       fine_tune_epochs=2)  # fmt: skip
    how = dataclasses.replace(QUICK, quantization=Quantization(bits=4, aware=1))
    made = make(teacher, judge, StudentSpec(None, settings), how)
    assert made.curve[0].kept == 1 and made.curve[-1].taken in (True, False) and len(made.curve) > 1
    left = next(step.parameters for step in reversed(made.curve) if step.taken)
    assert made.stages[-1].parameters == left < structural.parameters_of(teacher) / 2
    assert int(weights(made.student).count_nonzero()) <= left
    assert int(weights(made.quantized).count_nonzero()) <= left
    assert {timing.chosen for timing in made.timings} <= {"dense", "sparse"} and made.timings


def test_a_lottery_ticket_trains_from_early_weights(teacher: nn.Module, judge: Judge) -> None:
    settings = Pruning(0.8, "weights", schedule="lottery", steps=2, fine_tune_epochs=0)
    torch.manual_seed(1)
    early = TASK.model()
    longer = StudentPipeline(distillation=Distillation(epochs=20))
    made = pipeline.make(teacher, TASK, StudentSpec(None, settings), longer, early=early, judge=judge, seed=1)
    untrained = evaluate(early, TASK, TASK.data().test).accuracy
    first, pruned, distilled, _ = made.stages
    assert abs(pruned.accuracy - untrained) < 0.2 < first.accuracy - pruned.accuracy
    assert distilled.accuracy > pruned.accuracy + 0.2 and distilled.parameters == made.curve[-1].parameters
    with pytest.raises(ValueError, match="needs early weights"):
        make(teacher, judge, StudentSpec(None, settings))


def test_the_quantization_asked_for_is_what_the_tensors_hold(teacher: nn.Module, judge: Judge) -> None:
    made = make(teacher, judge, how=dataclasses.replace(QUICK, quantization=Quantization(bits=3, group=8)))
    found = [tensor for tensor in made.tensors.values() if isinstance(tensor, Quantized)]
    assert found and all(tensor.bits == 3 and tensor.group == 8 for tensor in found)
    assert all(np.abs(tensor.codes).max() <= quantized_tensor.levels(3) for tensor in found)


def test_assistants_criteria_and_starts_make_other_students(teacher: nn.Module, judge: Judge) -> None:
    plain = weights(make(teacher, judge).student)
    helped = make(teacher, judge, how=dataclasses.replace(QUICK, assistants=Assistants(factor=8)))
    assert helped.student is not None and not torch.equal(weights(helped.student), plain)
    taylor = make(teacher, judge, how=dataclasses.replace(QUICK, pruning=Pruning(importance="taylor")))
    assert not torch.equal(weights(taylor.student), plain)
    other = make(teacher, judge, SMALL._replace(start=Start("mlp")))
    assert other.architecture == "mlp" and structural.parameters_of(other.student) <= 3_000


def test_a_search_tells_what_it_looked_at(teacher: nn.Module, judge: Judge) -> None:
    found = make(teacher, judge, SMALL._replace(search=search.Search(candidates=2, finalists=1)))
    assert found.candidates[0].chosen and found.candidates[0].parameters == structural.parameters_of(found.student)


def test_a_student_that_has_learnt_is_only_quantized(teacher: nn.Module, judge: Judge) -> None:
    student = make(teacher, judge).student
    made = pipeline.finished(teacher, TASK, student, QUICK, architecture="cnn", judge=judge, seed=1)
    assert [stage.name for stage in made.stages] == ["teacher", "trained", "quantized"]
    assert made.student is student and made.architecture == "cnn"
    assert (weights(made.quantized) - weights(student)).abs().max() < 0.02


def test_made_up_inputs_go_with_no_labels() -> None:
    from fedpress.compression.models.distillation.data_free import RECIPES

    with pytest.raises(ValueError, match="made-up inputs have no labels"):
        StudentPipeline(made_up=RECIPES["dafl"], labels=True)
