"""What a teacher writes begins as it was asked to and goes on as the teacher would."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.sequence_level import continued
from fedpress.compression.models.distillation.settings import Continuations, Distillation, LossWeights
from fedpress.compression.models.transformer import CausalTransformer

LABELS = 7


class Counts(nn.Module):
    """A teacher that is sure that the next character is the one after the last in the alphabet, or one further."""

    def __init__(self, doubt: float = 0.0) -> None:
        super().__init__()
        self.doubt = doubt

    def forward(self, characters: Tensor) -> Tensor:
        after, later = ((characters + step) % LABELS for step in (1, 2))
        sure = nn.functional.one_hot(after, LABELS) + self.doubt * nn.functional.one_hot(later, LABELS)
        return 50 * sure.float()


def windows(count: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, LABELS, (count, length), generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 11), st.sampled_from([0.0, 1.0]), st.integers(0, 3))
def test_the_prompt_stays_and_the_teacher_goes_on(prompt: int, temperature: float, seed: int) -> None:
    given_ = windows()
    made = continued(Counts(), given_, Continuations(prompt, temperature), seed=seed)
    assert made.inputs.shape == made.targets.shape == given_.shape
    assert torch.equal(made.inputs[:, :prompt], given_[:, :prompt])
    assert torch.equal(made.targets[:, :-1], made.inputs[:, 1:])  # one ahead
    assert torch.equal(made.targets[:, prompt - 1 :], (made.inputs[:, prompt - 1 :] + 1) % LABELS)


def test_draws_follow_the_teachers_distribution_and_the_seed() -> None:
    torch.manual_seed(0)
    teacher = CausalTransformer(LABELS, 12, width=8, depth=1, heads=2, hidden=8).train()
    choice = Continuations(prompt=11, copies=400)
    made = continued(teacher, windows(2), choice, seed=1)
    assert teacher.training and len(made.inputs) == 800
    with torch.no_grad():
        expected = teacher(windows(2)[:, :11])[:, -1].softmax(-1)
    # Copies of one prompt are every second window.
    found = torch.stack([torch.bincount(made.inputs[row::2, 11], minlength=LABELS) / 400 for row in (0, 1)])
    torch.testing.assert_close(found, expected, atol=0.08, rtol=0)
    assert torch.equal(made.inputs, continued(teacher, windows(2), choice, seed=1).inputs)
    assert not torch.equal(made.inputs, continued(teacher, windows(2), choice, seed=2).inputs)


def test_a_student_learns_from_what_the_teacher_wrote_alone() -> None:
    """Sequence-level distillation: no answers of the teacher's, only its characters."""
    torch.manual_seed(0)
    student = CausalTransformer(LABELS, 12, width=16, depth=1, heads=2, hidden=16)
    made = continued(Counts(), windows(256), Continuations(prompt=1), seed=0)
    plan = Distillation(epochs=20, learning_rate=1e-2, weights=LossWeights(teacher=0.0, labels=1.0))
    learned = distill(Counts(), student, made.inputs, plan, targets=made.targets, seed=0).eval()
    other = windows(40)[32:]
    assert (learned(other).argmax(-1) == (other + 1) % LABELS).float().mean() > 0.95


def test_a_student_learns_the_distribution_at_every_place() -> None:
    """Prompt-level distillation: the teacher's doubt is learned, which no single label would say."""
    torch.manual_seed(0)
    student = CausalTransformer(LABELS, 12, width=16, depth=1, heads=2, hidden=16)
    plan = Distillation(epochs=20, learning_rate=1e-2, temperature=1.0)
    learned = distill(Counts(doubt=0.98), student, windows(64), plan, seed=0).eval()
    other = windows(72)[64:]
    with torch.no_grad():
        chances = learned(other).softmax(-1)
    after, later = ((chances.gather(-1, ((other + step) % LABELS)[..., None])).mean() for step in (1, 2))
    assert 0.55 < after < 0.85 and 0.15 < later < 0.4  # 0.73 and 0.27 of the teacher


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": 0}, "prompt: got .*, expected greater than or equal to 1"),
        ({"copies": 0}, "copies: got .*, expected greater than or equal to 1"),
        ({"temperature": -1.0}, "temperature: got .*, expected greater than or equal to 0"),
        ({"temperature": 0.0, "copies": 2}, "copies: got 2, but at temperature 0 all are the same"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Continuations(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_continued_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need labels \(N, L\), got torch.float32 \(4, 5\)"):
        continued(Counts(), torch.zeros(4, 5), Continuations(), seed=0)
    with pytest.raises(ValueError, match="prompt is 32, expected less than the 12 characters"):
        continued(Counts(), windows(), Continuations(), seed=0)
