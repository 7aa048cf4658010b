"""Budgets and searches that make no sense are refused, and say what is expected."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fedpress.compression.models.device_speed import DeviceSpeed
from fedpress.compression.models.students.settings import UNITS, Budget, Search

SPEED = DeviceSpeed(call_ms=0.01, convolution_call_ms=0.01, convolution_ms=0.05, matrix_ms=0.1, moved_ms=0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one budget out of parameters, .*; got none"),
        ({"parameters": 5, "bundle_bytes": 5}, "got parameters and bundle_bytes"),
        ({"parameters": 0.0}, "a fraction of the global model's, 0 < fraction <= 1"),
        ({"parameters": 1.5}, "a fraction of the global model's, 0 < fraction <= 1"),
        ({"parameters": 0}, "a whole number >= 1"),
        ({"removed_fraction": 1.0}, "0 < removed_fraction < 1, or auto"),
        ({"removed_fraction": "most"}, "0 < removed_fraction < 1, or auto"),
        ({"bundle_bytes": -3}, "bundle_bytes: got .*, expected greater than or equal to 1"),
        ({"flops": 0}, "flops: got .*, expected greater than or equal to 1"),
        ({"latency_ms": 1.0}, "latency_ms and device go together"),
        ({"flops": 5, "device": SPEED}, "latency_ms and device go together"),
        ({"latency_ms": 0, "device": SPEED}, "latency_ms: got .*, expected greater than 0"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"finalists": 0}, "finalists: got .*, expected greater than or equal to 1"),
        ({"candidates": 4, "finalists": 5}, "got 5, expected at most candidates, 4"),
        ({"score": "guess"}, "score: got .*, expected 'synflow', 'naswot', 'gradient_norm' or 'agreement'"),
        ({"spread": 0.5}, "spread: got .*, expected greater than or equal to 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**given)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"parameters": 5}, "parameters"),
        ({"parameters": 1.0}, "parameters"),
        ({"removed_fraction": "auto"}, "removed_fraction"),
        ({"removed_fraction": 0.5}, "removed_fraction"),
        ({"latency_ms": 1.0, "device": SPEED}, "latency_ms"),
    ],
)
def test_a_budget_knows_its_kind(given: dict[str, Any], kind: str) -> None:
    assert Budget(**given).kind == kind and kind in UNITS


def test_a_budget_of_latency_reads_the_file_of_a_probe(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"speed": dataclasses.asdict(SPEED)}))
    assert Budget(latency_ms=1.0, device=str(file)) == Budget(latency_ms=1.0, device=SPEED)  # type: ignore[arg-type]
