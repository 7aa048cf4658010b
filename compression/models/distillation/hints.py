"""Losses on the activations and attention of a single teacher, besides its answers.

`features`: A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, equation 3: squared distance to the teacher's activations through a learned projection. Here at the end
    of every stage, at the same time as the other losses rather than before them, and relative to the mean square of the
    teacher's activations, so that a weight has the same meaning for each stage.
`attention_transfer`: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017, section 3.1: squared distance between the
    normalized spatial maps of squared activations, for stages whose outputs are maps. Needs no projection.
    Of a transformer each layer is a stage, so that hidden states are matched layer by layer, of layers at equal
    relative depth, as in X. Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of
    EMNLP 2020, section 3.1, equation 8.
`attention`: W. Wang, F. Wei, L. Dong, H. Bao, N. Yang, M. Zhou, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, equation 2: the Kullback-Leibler divergence
    between attention distributions; here of layers at equal relative depth, paired as in TinyBERT.

Places of padding, as the inputs' mask says, do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.settings import LossWeights
from fedpress.compression.models.distillation.stages import Recording
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.reproducible import evaluating


class Hints(nn.Module):
    """The three losses; its parameters, the projections, are trained with the student and then discarded.

    Args:
        student: Student whose stages are matched; not held.
        teacher: Teacher whose stages are matched; not held.
        example: Batch of inputs of the student, (N, ...).
        teacher_example: Batch of inputs of the teacher, (N, ...).
        weights: Weights of the losses, of which features, attention_transfer and attention are used.

    Raises:
        TeacherError: The two models lack matching layers for a loss with a weight above 0.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, example: Batch, teacher_example: Batch, weights: LossWeights
    ) -> None:
        super().__init__()
        self._weights = weights
        self._pairs = stages.matched(stages.stages(student, example), stages.stages(teacher, teacher_example))
        attends = bool(weights.attention) and _attend(student, example, teacher, teacher_example)
        for name, possible, needs in (
            ("features", bool(self._pairs), "a stage of the same kind (maps, sequences or vectors)"),
            ("attention_transfer", any(pair[0].axes == 4 for pair in self._pairs), "maps (N, C, H, W)"),
            ("attention", attends, "attention of as many queries and keys"),
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

    def forward(self, student: Recording, teacher: Recording, places: Tensor | None = None) -> Tensor:
        """Return the weighted sum of the losses of a batch, a scalar.

        Args:
            student: Recorded pass of the student on the batch.
            teacher: Recorded pass of the teacher on the batch.
            places: Places of the sequences that are no padding, bool (N, L); None: all.
        """
        loss = torch.zeros(())
        for number, (student_stage, teacher_stage) in enumerate(self._pairs):
            output, goal = _of_one_size(
                student.outputs[student_stage.place][1], teacher.outputs[teacher_stage.place][1].detach()
            )
            if self._weights.features:
                projected = self.projections[number](output)
                if places is not None and places.shape == goal.shape[:-1]:
                    projected, goal = projected[places], goal[places]
                distance = functional.mse_loss(projected, goal)
                loss = loss + self._weights.features * distance / goal.square().mean().clamp(min=1e-8)
            if self._weights.attention_transfer and student_stage.axes == 4:
                transfer = (activity(output) - activity(goal)).square().sum(dim=1).mean()
                loss = loss + self._weights.attention_transfer * transfer
        if self._weights.attention:
            loss = loss + self._weights.attention * _attention(student.maps, teacher.maps, places)
        return loss


def activity(maps: Tensor) -> Tensor:
    """Return the normalized activity of maps (N, C, H, W): squares summed over channels, (N, H * W), of unit length."""
    return functional.normalize(maps.square().sum(dim=1).flatten(1), dim=1)


def attention_divergence(student: Tensor, teacher: Tensor, places: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of attention distributions, a scalar: the mean over examples, heads and queries.

    Where the numbers of heads differ, the means over the heads are compared.

    Args:
        student: Attention of the student, (N, heads, queries, keys).
        teacher: Attention of the teacher, (N, heads, queries, keys).
        places: Queries that count, bool (N, queries); None: all.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    teacher = teacher.detach()
    divergence = (torch.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-9).log()).sum(dim=-1)
    if places is None or places.shape != (divergence.shape[0], divergence.shape[-1]):
        return divergence.mean()
    return divergence.movedim(1, -1)[places].mean() if divergence.ndim == 3 else divergence[places].mean()


def _attention(student: list[Tensor], teacher: list[Tensor], places: Tensor | None) -> Tensor:
    pairs = stages.aligned(len(student), len(teacher))
    return torch.stack(
        [attention_divergence(student[first], teacher[second], places) for first, second in pairs]
    ).mean()


def _attend(student: nn.Module, example: Batch, teacher: nn.Module, teacher_example: Batch) -> bool:
    """Return whether two models have attention distributions that can be compared."""
    sizes = []
    for model, batch in ((student, example), (teacher, teacher_example)):
        with evaluating(model), stages.recording(model, attention=True) as record:
            model_inputs.call(model, batch)
            sizes.append([(len(maps), *maps.shape[-2:]) for maps in record.maps])
    pairs = stages.aligned(len(sizes[0]), len(sizes[1]))
    return bool(pairs) and all(sizes[0][first] == sizes[1][second] for first, second in pairs)


def _of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both at the lower of their resolutions; sequences of different lengths as their means."""
    if student.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        return student.mean(dim=1), teacher.mean(dim=1)
    return student, teacher
