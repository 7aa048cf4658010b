"""The students of a scenario: recipes, steps of one's own, budgets of tiers."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from tests.simulations.scenario.problems import problems

from fedpress.simulations.scenario import students
from fedpress.simulations.scenario.scenario import Scenario, load


@pytest.mark.parametrize("recipe", students.RECIPES)
def test_a_recipe_of_students_is_completed_by_the_keys_beside_it(recipe: str) -> None:
    chosen = load("fashion-mnist-100", [f"students={recipe}"]).students
    assert chosen.recipe == recipe and len(chosen.tiers) == 1
    more = load("fashion-mnist-100", [f"students={{recipe: {recipe}, distill: {{epochs: 3}}}}"]).students
    assert more.distill.epochs == 3 and (more.quantize, more.tiers) == (chosen.quantize, chosen.tiers)
    again = Scenario.from_json(load("digits", [f"students={recipe}"]).to_json()).students
    assert again.tiers == chosen.tiers


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            "[prune, distil, quantize]",
            "students.steps.1: expected prune, distill, quantize; did you mean 'distill'?",
        ),
        ("[prune, distill]", "students.steps: expected quantize once"),
        (
            "[{step: prune, ranking: global}, quantize]",
            "students.steps.0: step: Value error, got 'prune', expected",
        ),
    ],
)
def test_steps_that_are_none_are_named(steps: str, expected: str) -> None:
    assert expected in problems(f"students.steps={steps}")


AUTO = "students.tiers=[{name: phone, removed_fraction: auto}]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["students.epochs=3"], "students.epochs: unknown key"),
        (["students.prune={ranking: erk}"], "ranking 'erk' gives densities of single weights"),
        (["students.prune={importance: sparsegpt}"], "importance 'sparsegpt' removes single weights"),
        (
            ["students.quantize={rounding: adaround, qat_epochs: 2}"],
            "aware training chooses what each weight is rounded to",
        ),
        (["students.quantize={bits: 1}"], "students.quantize.bits"),
        (
            ["students.distill={weights: {teacher: 0, labels: 0}}"],
            "weights must be at least 0, and one of them above it",
        ),
        ([AUTO], "prune: tolerance: missing; removed_fraction auto is the largest that costs"),
        (
            ["students.tiers=[{name: phone, removed_fraction: 1.5}]"],
            "expected a part of the parameters, 0 < removed_fraction < 1, or auto",
        ),
        (
            ["students.tiers=[{name: phone, removed_fraction: 0.5, student: mlp}]"],
            "removed_fraction is for the pruned global model alone",
        ),
        (["students.tiers=[{name: phone, removed_fraction: 0.5, parameters: 0.5}]"], "give one budget out of"),
        (
            ["students={prune: {granularity: weights, importance: sparsegpt}, tiers: [{name: one, parameters: 0.5}]}"],
            "sparsegpt removes single weights, so every tier must have",
        ),
        (["students={quantize: {onnx: true}, tiers: [{name: phone, bundle_bytes: 9000}]}"], "no tier may have"),
        (
            ["students={prune: {penalty: l1}, tiers: [{name: phone, parameters: 0.5}]}"],
            "is for tiers with a removed_fraction",
        ),
    ],
)
def test_what_makes_no_student_is_named(overrides: list[str], expected: str) -> None:
    assert expected in problems(*overrides)


def test_a_student_is_made_as_the_scenario_says() -> None:
    chosen = load(
        "digits",
        [AUTO, "students.prune={granularity: weights, ranking: erk, schedule: cubic, steps: 3, tolerance: 0.01}",
         "students.quantize={bits: 4, group_size: 32}", "students.distill={weights: {features: 0.1}}"],
    ).students  # fmt: skip
    assert chosen.prune.schedule == "cubic" and chosen.tiers[0].removed_fraction == "auto"
    assert (chosen.quantize.group_size, chosen.distill.weights.features) == (32, 0.1)


@pytest.mark.parametrize("budget", ["parameters: 0.1", "bundle_bytes: 9000", "flops: 100000", "memory_bytes: 50000"])
def test_a_tier_has_one_of_the_budgets(budget):
    tier = load("digits", [f"students.tiers=[{{name: phone, {budget}, student: auto}}]"]).students.tiers[0]
    key, value = budget.split(": ")
    assert tier.student == "auto" and getattr(tier, key) == float(value)


def test_milliseconds_take_the_rates_from_the_file_of_a_probe(tmp_path):
    rates = {"call_ms": 0.1, "convolution_call_ms": 0.2, "convolution_ms": 0.3, "matrix_ms": 0.4, "moved_ms": 0.5}
    path = tmp_path / "phone.json"
    path.write_text(json.dumps({"speed": rates, "cores": 2}))
    loaded = load("digits", [f"students.tiers=[{{name: phone, latency_ms: 0.5, device: {path}}}]"])
    path.unlink()  # a run does not depend on the file any more
    assert asdict(loaded.students.tiers[0].device) == rates
    assert Scenario.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize(
    ("tier", "text"),
    [
        (
            "{name: phone}",
            "parameters, bundle_bytes, flops, memory_bytes, latency_ms, removed_fraction; got none",
        ),
        ("{name: phone, flops: 5, bundle_bytes: 5}", "got bundle_bytes and flops"),
        ("{name: phone, latency_ms: 0.5}", "latency_ms and device go together; `fedpress probe --json FILE`"),
        ("{name: phone, latency_ms: 0.5, device: nowhere.json}", "expected a file that `fedpress probe --json FILE`"),
        ("{name: phone, flops: 5, student: auto, layers: 2}", "layers has no meaning with student auto"),
        ("{name: phone, flops: 5, inherit: by-name}", "inherit is for a student of another architecture"),
        ("{name: phone, flops: 5, student: mlp, inherit: half}", "expected by-name, every-second, or a map"),
    ],
)
def test_a_tier_that_makes_no_sense_is_explained(tier, text):
    assert text in problems(f"students.tiers=[{tier}]")


def test_a_search_has_no_more_finalists_than_candidates():
    given = "students.search={candidates: 8, finalists: 9}"
    assert "finalists: got 9, expected at most candidates, 8" in problems(given)
