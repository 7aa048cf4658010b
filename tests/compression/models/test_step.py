"""What passes from step to step is never changed, and what is written down is plain data."""

import dataclasses

import pydantic
import torch
from torch import nn

from fedpress.compression.models.step import CheckedStep, Materials, StageResult, Student
from fedpress.compression.models.students.initial_student import PruneToBudget
from fedpress.compression.models.students.settings import Budget
from fedpress.simulations.tasks.digits import Digits


def test_a_step_leaves_the_student_before_it_as_it_was() -> None:
    first = Student(nn.Linear(2, 2), "mlp")
    second = first.after("pruned", nn.Linear(1, 1))
    assert (first.step, second.step) == ("", "pruned") and first.model is not second.model
    assert second.architecture == "mlp"  # what the step does not speak of stays


def test_the_example_is_one_input_of_validation_data() -> None:
    task = Digits()
    model = task.model()
    materials = Materials(model, task, torch.zeros(0, 1, 8, 8), None, None, seed=0)  # type: ignore[arg-type]
    assert torch.equal(materials.example, task.data().validation.inputs[:1])


def test_figures_are_the_same_after_json() -> None:
    figures = StageResult("pruned", 5, 20, 0.25, 0.5, 3, 0.125)
    adapter = pydantic.TypeAdapter(StageResult)
    assert adapter.validate_json(adapter.dump_json(figures)) == figures
    assert adapter.dump_python(figures) == dataclasses.asdict(figures)


def test_only_some_steps_can_be_asked_before_the_first_round() -> None:
    assert isinstance(PruneToBudget(Budget(parameters=1)), CheckedStep)
    assert not isinstance(Student.after, CheckedStep)
