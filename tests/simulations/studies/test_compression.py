"""The study of quantization runs on real data, and its figures are those of files."""

import json
from pathlib import Path

import pytest
import torch

from fedpress.compression.models.quantization.settings import Quantization
from fedpress.simulations.studies import compression
from fedpress.simulations.studies.compression import SETUPS, CompressionSetup, named
from fedpress.simulations.tasks.digits import Digits


@pytest.mark.long
def test_each_way_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = named(Quantization(), Quantization(bits=4), Quantization(bits=3, scale="least-squares", qat_epochs=10))
    whole = named(Quantization(bits=4, scale="least-squares", sparsity=0.9, qat_epochs=15))
    monkeypatch.setitem(SETUPS, "digits", CompressionSetup(10, 8_000, 20, ways, whole))
    monkeypatch.setattr("sys.argv", ["study", "digits", "--json", str(tmp_path / "rows.json")])
    threads = torch.get_num_threads()
    compression.main()
    torch.set_num_threads(threads)
    written = json.loads((tmp_path / "rows.json").read_text())
    teacher, int8, int4, int3, sparse = written["rows"]
    assert teacher["test"] > 0.85 and teacher["size"] == 4 * teacher["parameters"]
    assert int8["size"] > int4["size"] > int3["size"] and int8["parameters"] == int3["parameters"] <= 8_000
    assert int8["test"] > teacher["test"] - 0.04 and int3["test"] > teacher["test"] - 0.08
    assert sparse["parameters"] == teacher["parameters"]
    assert sparse["smaller"] > 35 and sparse["test"] > teacher["test"] - 0.03
    for row in written["rows"][1:]:
        assert row["entropy"] < row["zlib"] and row["size"] < row["entropy"] * 1.01 + 900
    torch_row, float32, int8_onnx = written["speeds"]
    assert torch_row["test"] == pytest.approx(float32["test"], abs=0.005)
    assert int8_onnx["size"] < 0.3 * float32["size"] and int8_onnx["test"] > float32["test"] - 0.02
    assert "whole int4, nearest, aware 15, 90% zero" in capsys.readouterr().out


def test_the_ways_differ_and_are_named_apart() -> None:
    for setup in SETUPS.values():
        assert len(setup.pruned) == 1 + 2 + 6 + 3 and len(setup.whole) == 4
    assert Digits.name in SETUPS
