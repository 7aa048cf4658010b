"""Settings of distillation: ranges, recipes, and combinations that make no sense."""

import dataclasses
from typing import Any

import pytest

from fedpress.compression.models.distillation.settings import (
    RECIPES,
    Assistants,
    Continuations,
    DataFree,
    Distillation,
    LearningData,
    LossWeights,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"temperature": -1.0},
        {"weights": {"teacher": 0.0, "labels": 0.0}},
        {"weights": {"features": -1.0}},
        {"labeled": 0},
        {"balance": "all"},
        {"beta": 1.0},
        {"decay": 0.0},
        {"noise": -0.1},
    ],
)
def test_a_distillation_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^Distillation: {next(iter(wrong))}[:.]"):
        Distillation(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimize": "pixels"}, "optimize: got .*, expected 'inputs' or 'generator'"),
        ({"batch_size": 1}, "batch_size: got .*, expected greater than or equal to 2"),
        ({"steps": 0}, "steps: got .*, expected greater than or equal to 1"),
        ({"learning_rate": 0.0}, "learning_rate: got .*, expected greater than 0"),
        ({"low": 1.0}, "low must be below high, got 1.0 and 1.0"),
        ({"balance": -1.0}, "balance: got .*, expected greater than or equal to 0"),
        ({"certainty": 0.0, "statistics": 0.0, "variation": 0.0}, "must be above 0, got 0 for all"),
    ],
)
def test_made_inputs_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFree(**wrong)  # type: ignore[arg-type]


def test_a_recipe_is_completed_by_what_differs() -> None:
    assert LearningData(data_free="dafl").data_free == RECIPES["dafl"]  # type: ignore[arg-type]
    shorter = LearningData(data_free={"recipe": "dafl", "steps": 7})  # type: ignore[arg-type]
    assert shorter.data_free == dataclasses.replace(RECIPES["dafl"], steps=7)
    with pytest.raises(ValueError, match="recipe: got 'dall-e', expected deep-inversion, dafl, dfad"):
        LearningData(data_free="dall-e")  # type: ignore[arg-type]


def test_recipes_are_those_of_the_papers() -> None:
    assert {name: recipe.optimize for name, recipe in RECIPES.items()} == {
        "deep-inversion": "inputs",
        "dafl": "generator",
        "dfad": "generator",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": 0}, "prompt: got .*, expected greater than or equal to 1"),
        ({"copies": 0}, "copies: got .*, expected greater than or equal to 1"),
        ({"temperature": -1.0}, "temperature: got .*, expected greater than or equal to 0"),
        ({"temperature": 0.0, "copies": 2}, "copies: got 2, but at temperature 0 all are the same"),
    ],
)
def test_continuations_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Continuations(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1.0, 0.0, float("nan")])
def test_a_factor_that_is_no_step_down_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="expected greater than 1|a finite number"):
        Assistants(factor)


@pytest.mark.parametrize("made", [{"labels": True}, {"continuations": Continuations()}])
def test_inputs_made_from_a_model_have_no_labels_and_are_no_sequences(made: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="data_free: inputs made from a model have no labels and are no sequences"):
        LearningData(data_free=RECIPES["dafl"], **made)


def test_a_loss_of_labels_alone_learns_nothing_without_them() -> None:
    assert not LossWeights(teacher=0.0, labels=1.0).learns_without_labels
    for name in (each.name for each in dataclasses.fields(LossWeights) if each.name not in ("teacher", "labels")):
        assert LossWeights(teacher=0.0, **{name: 0.1}).learns_without_labels
