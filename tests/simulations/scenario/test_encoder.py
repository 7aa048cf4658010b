"""The encoder of a scenario: a recipe by name, or its parts."""

from __future__ import annotations

import numpy as np
import pytest

from fedpress.compression.encoders import recipes
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.simulations.scenario import encoder, yaml_source
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError, load


@pytest.mark.parametrize("without", ["downlink=null", "server={optimizer: adam}"])
def test_cafe_needs_what_it_predicts_from(without):
    with pytest.raises(ScenarioError, match="encoder.feedback: cafe predicts from what goes down, in steps of sgd"):
        load("digits", ["encoder={feedback: cafe}", without])


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_scenario_can_name_a_recipe(recipe):
    server = ["server={optimizer: majority_vote, learning_rate: 0.01}"] if recipe == "signsgd" else []
    chosen = load("digits", [f"encoder={recipe}", *server])
    assert chosen.encoder.recipe == (recipe if recipe in encoder.RECIPES else None)
    assert chosen == load("digits", [f"encoder={{recipe: {recipe}}}", *server])
    assert Scenario.from_json(chosen.to_json()) == chosen
    assert Scenario.model_validate(yaml_source.read(chosen.to_yaml())) == chosen


def test_a_name_of_parts_is_these_parts_which_others_may_change():
    assert load("digits", ["encoder=stc"]) == load("digits", ["encoder={values: ternary, feedback: residual}"])
    changed = load("digits", ["encoder=random_k", "encoder.values=int8"]).encoder
    assert (changed.recipe, changed.kind, changed.values, changed.feedback) == (None, "random_k", "int8", "residual")


@pytest.mark.parametrize("name", encoder.NAMES_OF_PARTS)
def test_parts_send_what_the_recipe_of_the_library_sends(name):
    layout, recipe = Layout((TensorSpec("weight", (40, 5), "float32"),)), recipes.RECIPES[name]
    update = np.random.default_rng(1).standard_normal(layout.size).astype(np.float32)
    by_parts = encoder.EncoderSettings.model_validate({"recipe": name}).build(0.1)
    by_recipe = recipe.make(**{"density": 0.1} if recipe.takes else {})
    payloads = [
        built.encode(update.copy(), built.init(layout), SideInfo(layout), 7)[0] for built in (by_parts, by_recipe)
    ]
    assert payloads[0] == payloads[1]
