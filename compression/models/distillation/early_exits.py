"""Early exits: a classifier after each stage of a student, taught by the student's final classifier.

L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
Networks via Self Distillation", ICCV 2019, section 3.2: the deepest classifier teaches the shallow ones, which also
learn its own targets; their gradients train the shared stages. Without that paper's third loss, on features (see
`hints`), and with pooling to 2x2 and a linear layer in place of its bottleneck convolutions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.stages import Recording, Stage
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.compression.models.inputs import Batch

POOLED = 2
"""Height and width to which maps are pooled before a classifier."""


class Exits(nn.Module):
    """Classifiers of all stages but the last, whose classifier is the student's own.

    Args:
        student: Model whose stages get exits; not held.
        example: Batch of inputs, (N, ...).
        classes: Number of classes.

    Raises:
        TeacherError: The student has fewer than two stages.
    """

    def __init__(self, student: nn.Module, example: Batch, classes: int) -> None:
        super().__init__()
        student_stages = stages.stages(student, example)
        if len(student_stages) < 2:
            raise TeacherError(
                f"weights.early_exits needs a student of two stages or more, {type(student).__name__} has"
                f" {len(student_stages)}; set it to 0"
            )
        self._stages = student_stages[:-1]
        self.heads = nn.ModuleList(nn.Linear(_width(stage), classes) for stage in self._stages)

    def forward(self, record: Recording) -> list[Tensor]:
        """Return the logits (N, classes) of each exit, from a recorded pass of the student."""
        return [
            head(_pooled(record.outputs[stage.place][1])) for head, stage in zip(self.heads, self._stages, strict=True)
        ]


def _width(stage: Stage) -> int:
    return stage.channels * (POOLED**2 if stage.axes == 4 else 1)


def _pooled(output: Tensor) -> Tensor:
    if output.ndim == 4:
        return functional.adaptive_avg_pool2d(output, POOLED).flatten(1)
    return output.mean(dim=1) if output.ndim == 3 else output
