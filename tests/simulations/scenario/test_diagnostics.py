"""Errors of a scenario: full path of the key, value given, what is allowed, nearest match."""

from __future__ import annotations

import pytest
from tests.simulations.scenario.problems import problems

from fedpress.simulations.scenario import diagnostics, template


def test_all_problems_are_listed_at_once():
    told = problems("rounds=0", "density=2", "encoder.kind=topk")
    assert [line.split(":")[0].strip() for line in told.splitlines()] == ["rounds", "density", "encoder.kind"]


def test_missing_keys_are_named_with_their_meaning(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("task: digits\n")
    told = problems(base=str(path))
    assert "clients: missing (How many clients share the training data.)" in told
    assert "rounds: missing" in told


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # a settings class of the library inside a section, two and three levels down
        ("students.distill.weights.features=much", "students.distill.weights.features: got 'much', expected a number"),
        ("students.data.continuations={prompt: 2.5}", "students.data.continuations.prompt: got 2.5, expected a whole"),
        (
            "students.distill.weights.teacher=.inf",
            "students.distill.weights.teacher: got inf, expected a finite",
        ),
        ("students.quantize.onnx=1", "students.quantize.onnx: got 1, expected true or false"),
        ("students.distill.weights=5", "students.distill.weights: got 5, expected a section with the keys teacher,"),
        ("students.prune=erk", "students.prune: got 'erk', expected a section with the keys importance, ranking,"),
        ("students.distill.weights.teacher=-1", "students.distill.weights.teacher: got -1, expected 0 <= teacher"),
        ("students.data.continuations={prompt: 0}", "students.data.continuations.prompt: got 0, expected 1 <= prompt"),
        ("students.quantize.bits=9", "students.quantize.bits: got 9, expected 2 <= bits <= 8"),
        (
            "students.distill.weights.feature=1",
            "students.distill.weights.feature: unknown key (value given: 1); did you mean 'features'?",
        ),
        (
            "students.data.continuations={promt: 4}",
            "students.data.continuations.promt: unknown key (value given: 4); did you mean 'prompt'?",
        ),
        (
            "students.tiers=[{name: a, parameters: 5}, {name: b, flop: 5}]",
            "students.tiers.1.flop: unknown key (value given: 5); did you mean 'flops'?",
        ),
        (
            "students.distill.weights.tolerance=1",
            "students.distill.weights.tolerance: unknown key (value given: 1); 'tolerance' is written"
            " students.prune.tolerance",
        ),
        (
            "students.data={data_free: {recipe: dafl, lo: 0.5}}",
            "students.data.data_free.lo: unknown key (value given: 0.5); did you mean 'low'?",
        ),
        ("network={profile: lte, jiter: 1}", "network.jiter: unknown key (value given: 1); did you mean 'jitter'?"),
        ("students.prune.importance=taylr", "students.prune.importance: got 'taylr', expected"),
        # what a class finds out after its fields were checked
        (
            "students.distill.weights={teacher: 0, labels: 0}",
            "students.distill.weights: weights must be at least 0, and one of them above it; got 0 for all",
        ),
        (
            "students.search={candidates: 2, finalists: 3}",
            "students.search: finalists: got 3, expected at most candidates, 2",
        ),
        (
            "students.tiers=[{name: a, latency_ms: 1, device: {call_ms: 0, convolution_call_ms: 0, convolution_ms: 0,"
            " matrix_ms: 0, moved_ms: 0}}]",
            "students.tiers.0.device: the speed of a device is five rates >= 0, at least one above 0",
        ),
        (
            "students.tiers=[{name: a, latency_ms: 1, device: {call_ms: 1}}]",
            "students.tiers.0.device.matrix_ms: missing (For 10^6 other FLOPs.)",
        ),
        # keys of another name before
        (
            "students.distill.weights.past=1",
            "students.distill.weights.past: renamed to students.distill.weights.mean_teacher (value given: 1)",
        ),
        (
            "students.tiers=[{name: a, ratio: 0.5}]",
            "students.tiers.0.ratio: renamed to students.tiers.removed_fraction (value given: 0.5)",
        ),
    ],
)
def test_a_problem_inside_a_nested_class_has_its_full_key_and_value(override: str, expected: str) -> None:
    lines = [line.strip() for line in problems(override).splitlines()]
    assert [line for line in lines if line.startswith(expected)], lines


def test_nested_problems_are_listed_beside_those_of_the_top_level() -> None:
    told = problems("students.quantize.bits=1", "rounds=0", "students.distill.weights.labels=x")
    assert {line.split(":")[0].strip() for line in told.splitlines()} == {
        "rounds", "students.quantize.bits", "students.distill.weights.labels",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("density", "0 < {} <= 1"),
        ("seed", "0 <= {} < 2^63"),
        ("students.quantize.sparsity", "0 <= {} < 1"),
        ("network.jitter", "0 <= {}"),
        ("task.name", "{}"),
    ],
)
def test_limits_of_a_key_are_those_of_its_declaration(path: str, expected: str) -> None:
    fields = {".".join(key.path): key.field for key in template.keys()}
    assert diagnostics.limits(fields[path]) == expected
