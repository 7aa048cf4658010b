"""Teacher assistants: models of sizes between, where a student is much smaller than its teacher.

S. I. Mirzadeh, M. Farajtabar, A. Li, N. Levine, A. Matsukawa, H. Ghasemzadeh, "Improved Knowledge Distillation via
Teacher Assistant", AAAI 2020: each model learns from the next larger one. W. Son, J. Na, J. Choi, W. Hwang, "Densely
Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021, equation 5: each learns from all larger
ones (here from the mean of their softened answers, which has the same gradient as the mean of the losses; none is left
out at random).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fedpress.compression import seeds
from fedpress.compression.models import masks
from fedpress.compression.models.distillation import distill, teachers
from fedpress.compression.models.distillation.settings import Assistants, Distillation
from fedpress.compression.models.step import Materials, Student, Teacher


@dataclass(frozen=True)
class DistillThroughAssistants:
    """Step: as `distill.Distill`, by way of assistants where the student is much smaller than the global model.

    Attributes:
        smaller: Returns a model of at most so many parameters for an assistant to begin as, such as the global model
            pruned (`initial_student.smaller`).
        settings: How every model learns.
        assistants: When there are some.
    """

    smaller: Callable[[Materials, int], nn.Module]
    settings: Distillation = Distillation()
    assistants: Assistants = Assistants()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student after its distillation, with the weights zero that its masks lack."""
        whole = sum(parameter.numel() for parameter in materials.model.parameters())

        def learn(model: nn.Module) -> nn.Module:
            return distill_through(
                materials.teacher, model, materials.inputs, self.settings, self.assistants, parameters=whole,
                make=lambda most: self.smaller(materials, most), targets=materials.targets, seed=materials.seed,
            )  # fmt: skip

        return student.after("distilled", masks.train_within(student.model, student.masks, learn))


def sizes(teacher: int, student: int, factor: float) -> list[int]:
    """Return the parameters of the assistants, from the largest.

    >>> sizes(64_000, 1_000, factor=4), sizes(64_000, 1_000, factor=8), sizes(1_000, 400, factor=4)
    ([16000, 4000], [8000], [])
    """
    steps = math.ceil(math.log(teacher / student) / math.log(factor) - 1e-9)
    return [round(teacher * (student / teacher) ** (step / steps)) for step in range(1, steps)]


def distill_through(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    inputs: Tensor,
    settings: Distillation = Distillation(),
    assistants: Assistants = Assistants(),
    *,
    parameters: int,
    make: Callable[[int], nn.Module],
    targets: Tensor | None = None,
    seed: int,
) -> nn.Module:
    """As `distill.distill`, by way of assistants where the student is too small.

    Args:
        teacher, student, inputs, settings, targets, seed: As there. Every model learns with these settings.
        assistants: When there are some.
        parameters: Of the teacher; of the largest model where it is an ensemble.
        make: Returns a model of at most so many parameters, to start from, such as the teacher pruned.

    Raises:
        BudgetError, PruneError: From `make`.
        TeacherError, ValueError: As from `distill.distill`.
    """
    larger = [teachers.of(teacher)]

    def guide() -> Teacher:
        if not assistants.dense or len(larger) == 1:
            return larger[-1]
        return teachers.Ensemble(lambda: larger, "probabilities", settings.temperature)

    smallest = sum(parameter.numel() for parameter in student.parameters())
    for size in sizes(parameters, smallest, assistants.factor):
        drawn = seeds.derive("assistant", seed, size)
        taught = distill.distill(guide(), make(size), inputs, settings, targets=targets, seed=drawn)
        larger.append(teachers.Single(taught))
    return distill.distill(guide(), student, inputs, settings, targets=targets, seed=seed)
