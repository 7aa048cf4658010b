"""Early exits: a classifier after each stage of a student, taught by what comes after it.

L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
Networks via Self Distillation", ICCV 2019, section 3.2: the deepest classifier teaches the shallow ones, which learn
what it learns as well; their gradients train the stages that they share. Without that paper's third loss, on features,
which `hints` has, and with a pooling to 2x2 and a linear layer in place of its bottleneck convolutions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models.distillation import stages
from fedpress.compression.models.distillation.stages import Recording, Stage
from fedpress.compression.models.distillation.teachers import TeacherError

POOLED = 2
"""Height and width that maps are pooled to before a classifier."""


class Exits(nn.Module):
    """The classifiers of all stages but the last, whose classifier is the student's own.

    Args:
        student: For its stages only.
        example: A batch as it is called with, (N, ...).
        classes: Of its answers.

    Raises:
        TeacherError: The student has one stage only.
    """

    def __init__(self, student: nn.Module, example: Tensor, classes: int) -> None:
        super().__init__()
        parts = stages.stages(student, example)
        if len(parts) < 2:
            raise TeacherError(
                f"weights.early_exits needs a student of two stages or more, {type(student).__name__} has {len(parts)};"
                " set it to 0"
            )
        self._stages = parts[:-1]
        self.heads = nn.ModuleList(nn.Linear(_width(stage), classes) for stage in self._stages)

    def forward(self, record: Recording) -> list[Tensor]:
        """Return the logits (N, classes) of each exit, from what was recorded of the student."""
        return [
            head(_pooled(record.outputs[stage.place][1])) for head, stage in zip(self.heads, self._stages, strict=True)
        ]


def _width(stage: Stage) -> int:
    return stage.channels * (POOLED**2 if stage.axes == 4 else 1)


def _pooled(output: Tensor) -> Tensor:
    if output.ndim == 4:
        return functional.adaptive_avg_pool2d(output, POOLED).flatten(1)
    return output.mean(dim=1) if output.ndim == 3 else output
