"""A device is of the largest tier that it can carry, measured on the scenario's own models."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpress.client import probe
from fedpress.simulations.__main__ import main
from fedpress.simulations.runs import probe_tiers
from fedpress.simulations.runs.probe_tiers import Limits, NoTierFits
from fedpress.simulations.scenario.scenario import load

TIERS = "students.tiers=[{name: sensor, bundle_bytes: 10000}, {name: phone, parameters: 0.2}]"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RUNS", 1)
    monkeypatch.setattr(probe, "RUN_SECONDS", 1e-5)
    monkeypatch.setattr(probe_tiers, "FAMILY", (1.0, 0.2))
    monkeypatch.setattr(probe_tiers, "MOST_LAYERS", 1)


def test_the_largest_tier_that_fits_is_named() -> None:
    found, tiers = probe_tiers.run(load("digits", [TIERS]), Limits())
    assert [tier.name for tier in tiers] == ["phone", "sensor"] and found.tier == "phone"
    assert tiers[0].parameters > tiers[1].parameters and tiers[0].memory_bytes > tiers[1].memory_bytes
    assert sum(one.own for one in found.models) == 3
    assert {name for name, *_ in probe_tiers.model_rows(found)} == {one.name for one in found.models}

    less = (tiers[0].memory_bytes + tiers[1].memory_bytes) // 2
    found, tiers = probe_tiers.run(load("digits", [TIERS]), Limits(memory_bytes=less))
    assert found.tier == "sensor" and not tiers[1].reasons
    assert [row[-1] for row in probe_tiers.tier_rows(tiers)] == [
        f"needs {size(tiers[0])} of memory, at most {size(less)}",
        "fits",
    ]


def size(what: probe_tiers.TierHere | int) -> str:
    return probe_tiers.size(what if isinstance(what, int) else what.memory_bytes)


def test_the_command_says_which_tier_and_writes_it(tmp_path: Path) -> None:
    saved = tmp_path / "phone.json"
    done = CliRunner().invoke(main, ["probe", "digits", "--set", TIERS, "--download", "12000", "--json", str(saved)])
    assert done.exit_code == 0, done.output
    assert "tier: sensor" in done.stdout and "is a download of" in done.stdout
    assert probe.tier_in(saved) == "sensor"
    speed = json.loads(saved.read_text())["speed"]
    tier = f"students.tiers=[{{name: a, latency_ms: 1000.0, device: {saved}}}]"
    assert asdict(load("digits", [tier]).students.tiers[0].device) == speed  # type: ignore[union-attr]

    done = CliRunner().invoke(main, ["probe", "digits", "--set", TIERS, "--latency", "0.000001"])
    assert done.exit_code == 2
    assert "of none of the scenario's tiers: phone takes" in done.stderr and "; sensor takes" in done.stderr


def test_without_tiers_nothing_fits() -> None:
    with pytest.raises(NoTierFits, match="it has none"):
        raise probe_tiers.nothing_fits([])
