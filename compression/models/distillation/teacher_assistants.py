"""Teacher assistants: models of intermediate size, where a student is much smaller than its teacher.

S. I. Mirzadeh, M. Farajtabar, A. Li, N. Levine, A. Matsukawa, H. Ghasemzadeh, "Improved Knowledge Distillation via
Teacher Assistant", AAAI 2020: each model learns from the next larger one. W. Son, J. Na, J. Choi, W. Hwang, "Densely
Guided Knowledge Distillation using Multiple Teacher Assistants", ICCV 2021, equation 5: each learns from all larger
ones (here from the mean of their softened answers, which has the same gradient as the mean of the losses; without
dropping teachers at random).
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
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.step import Materials, Student, Teacher


@dataclass(frozen=True)
class DistillThroughAssistants:
    """Step: as `distill.Distill`, through assistants where the student is much smaller than the global model.

    Attributes:
        smaller: Maps the materials and a number of parameters to an untrained assistant of at most that size, such as
            the pruned global model (`initial_student.smaller`).
        settings: Distillation of every model.
        assistants: Sizes of the assistants, and their teachers.
    """

    smaller: Callable[[Materials, int], nn.Module]
    settings: Distillation = Distillation()
    assistants: Assistants = Assistants()

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student after its distillation; its weights outside its masks stay zero.

        Args:
            student: Student to train.
            materials: Teacher, data and seed.
        """
        whole = sum(parameter.numel() for parameter in materials.model.parameters())

        def learn(model: nn.Module) -> nn.Module:
            return distill_through(
                materials.teacher, model, materials.inputs, self.settings, self.assistants, parameters=whole,
                make=lambda most: self.smaller(materials, most), targets=materials.targets, seed=materials.seed,
                class_axis=materials.class_axis,
            )  # fmt: skip

        return student.after("distilled", masks.train_within(student.model, student.masks, learn))


def sizes(teacher: int, student: int, factor: float) -> list[int]:
    """Return the numbers of parameters of the assistants, the largest first, in equal ratios.

    >>> sizes(64_000, 1_000, factor=4), sizes(64_000, 1_000, factor=8), sizes(1_000, 400, factor=4)
    ([16000, 4000], [8000], [])

    Args:
        teacher: Number of parameters of the teacher.
        student: Number of parameters of the student.
        factor: Largest ratio of parameters between a teacher and its student, above 1.
    """
    steps = math.ceil(math.log(teacher / student) / math.log(factor) - 1e-9)
    return [round(teacher * (student / teacher) ** (step / steps)) for step in range(1, steps)]


def distill_through(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    inputs: Inputs,
    settings: Distillation = Distillation(),
    assistants: Assistants = Assistants(),
    *,
    parameters: int,
    make: Callable[[int], nn.Module],
    targets: Tensor | None = None,
    seed: int,
    class_axis: int = teachers.LAST,
) -> nn.Module:
    """Return the student distilled through assistants where it is too small to learn from the teacher directly.

    Args:
        teacher: Teacher, which answers in evaluation mode.
        student: Starting point of the training; untouched.
        inputs: Proxy data (N, ...).
        settings: Distillation of every model.
        assistants: Sizes of the assistants, and their teachers.
        parameters: Number of parameters of the teacher; of the largest model where it is an ensemble.
        make: Maps a number of parameters to an untrained assistant of at most that size, such as the pruned teacher.
        targets: Labels of the proxy data, int64 (N,) or (N, L); None: the students see none.
        seed: Seed of all random choices.
        class_axis: Axis of the models' outputs along which the classes are.

    Raises:
        BudgetError, PruneError: Raised by `make`.
        TeacherError, ValueError: As of `distill.distill`.
    """
    larger = [teachers.of(teacher, class_axis)]

    def learn(model: nn.Module, seed: int) -> nn.Module:
        return distill.distill(guide(), model, inputs, settings, targets=targets, class_axis=class_axis, seed=seed)

    def guide() -> Teacher:
        if not assistants.dense or len(larger) == 1:
            return larger[-1]
        return teachers.Ensemble(lambda: larger, "probabilities", settings.temperature)

    smallest = sum(parameter.numel() for parameter in student.parameters())
    for size in sizes(parameters, smallest, assistants.factor):
        assistant_seed = seeds.derive("assistant", seed, size)
        larger.append(teachers.Single(learn(make(size), assistant_seed), class_axis))
    return learn(student, seed)
