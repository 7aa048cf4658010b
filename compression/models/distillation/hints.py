"""What a student can learn from the inside of one teacher, besides its answers.

`features`: A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, equation 3: squared distance to the teacher's activations through a learned regressor. Here at the end of
    every stage, together with the other losses rather than before them, and relative to the mean square of the
    teacher's activations, so that a weight means the same for each stage.
`attention_transfer`: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017, section 3.1: squared distance between the
    normalized maps of where activations are large, for stages that put out maps. Needs no projection.
`attention`: W. Wang, F. Wei, L. Dong, H. Bao, N. Yang, M. Zhou, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, equation 2: the Kullback-Leibler divergence
    between attention distributions; here of layers an equal part of the way up, as X. Jiao et al., "TinyBERT:
    Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, section 3.1, pair them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.settings import LossWeights
from fedpress.compression.models.distillation.stages import Recording
from fedpress.compression.models.distillation.teachers import TeacherError


class Hints(nn.Module):
    """The losses on the inside; its parameters, the projections, are trained with the student and then thrown away.

    Args:
        student, teacher: The two models, for their stages only.
        example: A batch as the student is called with, (N, ...).
        teacher_example: As the teacher is called with.
        weights: Of the losses; features, attention_transfer and attention are looked at.

    Raises:
        TeacherError: The two have nothing in common that a weight asks for.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, example: Tensor, teacher_example: Tensor, weights: LossWeights
    ) -> None:
        super().__init__()
        self._weights = weights
        self._pairs = stages.matched(stages.stages(student, example), stages.stages(teacher, teacher_example))
        attends = all(any(callable(getattr(m, "maps", None)) for m in model.modules()) for model in (student, teacher))
        for name, possible, needs in (
            ("features", bool(self._pairs), "a stage of the same kind (maps, sequences or vectors)"),
            ("attention_transfer", any(pair[0].axes == 4 for pair in self._pairs), "maps (N, C, H, W)"),
            ("attention", attends, "layers with a method `maps`, such as attention.SelfAttention"),
        ):
            if getattr(weights, name) and not possible:
                raise TeacherError(
                    f"weights.{name} is {getattr(weights, name):g}, but teacher ({type(teacher).__name__}) and student"
                    f" ({type(student).__name__}) do not both have {needs}; set it to 0 for this pair"
                )
        self.projections = nn.ModuleList(
            nn.Conv2d(mine.channels, theirs.channels, 1)
            if mine.axes == 4
            else nn.Linear(mine.channels, theirs.channels)
            for mine, theirs in (self._pairs if weights.features else ())
        )

    def forward(self, student: Recording, teacher: Recording) -> Tensor:
        """The weighted sum of the losses of one batch, a scalar, from what was recorded of both models."""
        loss = torch.zeros(())
        for number, (mine, theirs) in enumerate(self._pairs):
            ours, goal = _of_one_size(student.outputs[mine.place][1], teacher.outputs[theirs.place][1].detach())
            if self._weights.features:
                distance = functional.mse_loss(self.projections[number](ours), goal)
                loss = loss + self._weights.features * distance / goal.square().mean().clamp(min=1e-8)
            if self._weights.attention_transfer and mine.axes == 4:
                loss = (
                    loss
                    + self._weights.attention_transfer * (activity(ours) - activity(goal)).square().sum(dim=1).mean()
                )
        if self._weights.attention:
            loss = loss + self._weights.attention * _attention(student.maps(), teacher.maps())
        return loss


def activity(maps: Tensor) -> Tensor:
    """Where activations (N, C, H, W) are large: squares summed over channels, (N, H * W), each of length 1."""
    return functional.normalize(maps.square().sum(dim=1).flatten(1), dim=1)


def attention_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of attention distributions (N, heads, queries, keys), the mean over all but the keys.

    Where the numbers of heads differ, the mean of the heads is compared.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    teacher = teacher.detach()
    return (torch.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-9).log()).sum(dim=-1).mean()


def _attention(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    pairs = stages.aligned(len(student), len(teacher))
    return torch.stack([attention_divergence(student[first], teacher[second]) for first, second in pairs]).mean()


def _of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the smaller of their resolutions; sequences of different lengths by their mean."""
    if student.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        return student.mean(dim=1), teacher.mean(dim=1)
    return student, teacher
