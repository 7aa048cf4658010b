"""Weights of classes: equal at beta 0, inverse to the classes' sizes as beta goes to 1, and the paper's between."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.models.distillation import class_balance

CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)


@given(CLASSES, st.floats(0, 0.9999))
def test_the_mean_is_one_and_rare_classes_never_weigh_less(classes: torch.Tensor, beta: float) -> None:
    found = class_balance.weights(classes, beta)
    torch.testing.assert_close(found.mean(), torch.tensor(1.0))
    counts = torch.bincount(classes, minlength=5)[classes]
    order = torch.argsort(counts, stable=True)
    assert (found[order].diff() <= 1e-5).all()


@given(CLASSES)
def test_the_two_ends(classes: torch.Tensor) -> None:
    torch.testing.assert_close(class_balance.weights(classes, 0.0), torch.ones(len(classes)))
    of_class = torch.stack([class_balance.weights(classes, 1 - 1e-9)[classes == c].sum() for c in classes.unique()])
    torch.testing.assert_close(of_class, of_class.mean().expand_as(of_class), rtol=1e-3, atol=0)


def test_the_weights_are_those_of_the_paper() -> None:
    found = class_balance.weights(torch.tensor([0] * 30 + [1] * 3), 0.9)
    expected = ((1 - 0.9) / (1 - 0.9**3)) / ((1 - 0.9) / (1 - 0.9**30))
    torch.testing.assert_close(found[-1] / found[0], torch.tensor(expected))
