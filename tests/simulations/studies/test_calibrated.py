"""The study of rounding and pruning by data runs on real data, and says what it did."""

import pytest
import torch

from fedpress.simulations.studies import calibrated


@pytest.mark.long
def test_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ways = calibrated.QUANTIZED[-3:]
    monkeypatch.setattr(calibrated.quantized, "__defaults__", (ways,))
    monkeypatch.setattr(calibrated.digits, "__defaults__", (8,))
    monkeypatch.setattr("sys.argv", ["study", "digits"])
    threads = torch.get_num_threads()
    calibrated.main()
    torch.set_num_threads(threads)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("float32") and len(rows) == 3 + 9
    scores = {row[:64].strip(): float(row[64:73]) for row in rows}
    whole = float(first.split()[1])
    assert whole > 0.9 and scores["bits 3, scale least-squares, group_size 64, rounding gptq"] > whole - 0.05
    assert scores["50% zeros, sparsegpt"] > whole - 0.03 and scores["2:4, sparsegpt"] > whole - 0.03
