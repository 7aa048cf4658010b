"""The speed of a device: from the file of a probe, or its five rates."""

import json
from pathlib import Path

import pytest

from fedpress.compression.models.device_speed import DeviceSpeed, measured
from fedpress.compression.models.students.settings import Budget

RATES = {"call_ms": 0.1, "convolution_call_ms": 0.2, "convolution_ms": 0.3, "matrix_ms": 0.4, "moved_ms": 0.5}


def test_a_budget_takes_the_rates_from_the_file_of_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"speed": RATES, "cores": 2}))
    speed = Budget(latency_ms=1.0, device=str(path)).device  # type: ignore[arg-type]
    assert speed == DeviceSpeed(**RATES) and speed.rates == tuple(RATES.values())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"speeds": {}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="`fedpress probe --json FILE` wrote"):
        measured(str(path))


def test_what_is_no_path_is_handed_back() -> None:
    assert measured(RATES) is RATES and measured(None) is None


def test_a_device_that_takes_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one above 0"):
        DeviceSpeed(**dict.fromkeys(RATES, 0.0))
