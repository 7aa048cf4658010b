"""Patterns of what is trained: the same everywhere, none that matches nothing, and what is frozen stays."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.trainable import TrainableError, frozen_statistics, select
from fedpress.compression.tensors.layout import Layout


def model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2)),
            "plain": nn.BatchNorm1d(2, affine=False),
            "classifier": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        }
    )


NAMES = [name for name, _ in model().named_parameters()]


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_names_select_themselves_whatever_was_trained_before(names: list[str]) -> None:
    made = model().requires_grad_(False)
    select(made, names)
    assert {name for name, p in made.named_parameters() if p.requires_grad} == set(names)
    layout = Layout.of(made)
    assert {spec.name for spec in layout.parameters} == set(names)
    assert {spec.name for spec in layout.frozen if not spec.name.endswith(("mean", "var", "tracked"))} == set(
        NAMES
    ) - set(names)


def test_buffers_of_frozen_layers_are_frozen_and_those_of_others_are_buffers() -> None:
    made = model()
    assert {spec.name.rpartition(".")[0] for spec in Layout.of(made).buffers} == {"encoder.1", "plain", "classifier.1"}
    assert not frozen_statistics(made)
    select(made, ["classifier.*"])
    layout = Layout.of(made)
    assert {spec.name.rpartition(".")[0] for spec in layout.buffers} == {
        "plain",
        "classifier.1",
    }  # plain: beside a head
    assert [name for name, _ in layout.norm_momenta] == ["plain", "classifier.1"]
    assert list(frozen_statistics(made)) == ["encoder.1"]
    select(made, ["classifier.0.weight"])
    assert list(frozen_statistics(made)) == ["encoder.1", "classifier.1"]
    inside = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), nn.Linear(2, 2))
    select(inside, ["1.*"])
    assert list(frozen_statistics(inside)) == ["0.1"]  # without parameters of its own: as the block around it


def test_a_tied_tensor_is_trained_by_any_of_its_names() -> None:
    tied = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3)})
    tied["head"].weight = tied["embedding"].weight
    select(tied, ["head.weight"])
    layout = Layout.of(tied)
    assert [spec.name for spec in layout.parameters] == ["embedding.weight"]
    assert layout.tied == (("head.weight", "embedding.weight"),)


@pytest.mark.parametrize(
    ("pattern", "likely"),
    [
        ("clasifier.*", "did you mean 'classifier'"),
        ("classifier", r"a pattern is for the whole name: did you mean 'classifier\.\*'"),
        ("0.weight", r"did you mean '\*\.0\.weight'"),
        ("Encoder.*", "did you mean 'encoder'"),
        ("*.lora_*", "matches no parameter of ModuleDict, which has encoder.0.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_says_what_is_near(pattern: str, likely: str) -> None:
    with pytest.raises(TrainableError, match=f"trainable: .*matches no parameter.*|.*{likely}") as error:
        select(model(), ["classifier.*", pattern])
    assert re.search(likely, str(error.value))


def test_integers_cannot_be_trained() -> None:
    made = nn.Module()
    made.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    made.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(TrainableError, match="'codes' alone, which holds integers"):
        select(made, ["codes"])
    select(made, ["*"])
    assert made.scale.requires_grad and not made.codes.requires_grad
