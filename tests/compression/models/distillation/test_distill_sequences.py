"""Distillation of answers at every place of a sequence: all places count alike, and one place is the plain case."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.loss import HIDDEN, distillation_loss
from fedpress.compression.models.distillation.settings import Distillation, LossWeights

INPUTS = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(64) % 3
SETTINGS = Distillation(epochs=3)


class Places(nn.Module):
    """Answers each of `length` places of an input (N, 5) with logits, (N, length, 3)."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, 3 * length)
        self.length = length

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs).unflatten(1, (self.length, 3))
        return logits


class Flat(Places):
    """The same without the axis of places."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs)
        return logits


@pytest.mark.parametrize("labels", [False, True])
def test_sequences_of_one_place_are_the_plain_case(labels: bool) -> None:
    targets = TARGETS if labels else None
    plain = distill(Flat(1, 0), Flat(1, 1), INPUTS, SETTINGS, targets=targets, seed=0)
    places = None if targets is None else targets[:, None]
    found = distill(Places(1, 0), Places(1, 1), INPUTS, SETTINGS, targets=places, seed=0)
    torch.testing.assert_close(list(found.parameters()), list(plain.parameters()))


def test_the_loss_is_the_mean_over_all_places() -> None:
    student, teacher = (torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    targets = torch.arange(24).reshape(4, 6) % 3
    targets[0, :5] = HIDDEN
    found = distillation_loss(
        teachers.by_class(student),
        teachers.by_class(teacher),
        temperature=2.0,
        targets=targets,
        weights=LossWeights(1.0, 0.5),
    )
    rows = [part.flatten(0, 1) for part in (student, teacher)]
    divergence = functional.kl_div(*((row / 2).log_softmax(1) for row in rows), reduction="batchmean", log_target=True)
    expected = 4 * divergence + 0.5 * functional.cross_entropy(rows[0], targets.flatten(), ignore_index=HIDDEN)
    torch.testing.assert_close(found, expected)


def test_what_is_for_one_label_an_example_is_refused() -> None:
    for settings in (Distillation(weights=LossWeights(early_exits=1.0)), Distillation(balance="reweight")):
        with pytest.raises(ValueError, match="the answers are sequences: both are for one label an example"):
            distill(Places(2, 0), Places(2, 1), INPUTS, settings, seed=0)
