"""A newer Flower than was tested warns once; and what was tested is what is pinned."""

import warnings
from pathlib import Path

import flwr
import pytest
from packaging.requirements import Requirement

from fedpress.compression.messages import flower_version

ROOT = Path(__file__).parents[3]


def test_a_newer_flower_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flower_version.warn_if_untested.cache_clear()
    monkeypatch.setattr(flwr, "__version__", "1.1000.0")
    with pytest.warns(flower_version.UntestedFlowerWarning, match=rf"Flower 1\.1000\.0.*{flower_version.TESTED}"):
        flower_version.warn_if_untested()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flower_version.warn_if_untested()
    flower_version.warn_if_untested.cache_clear()


@pytest.mark.parametrize("version", [flower_version.TESTED, "1.41.0"])
def test_a_tested_flower_does_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flower_version.warn_if_untested.cache_clear()
    monkeypatch.setattr(flwr, "__version__", version)
    flower_version.warn_if_untested()
    flower_version.warn_if_untested.cache_clear()


def test_what_was_tested_is_what_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = (requirement for line in lines if line.startswith("flwr==") and (requirement := Requirement(line)))
    assert str(pin.specifier) == f"=={flower_version.TESTED}"
