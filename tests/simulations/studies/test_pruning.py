"""The study of pruning compares each way with a baseline of the same size; its command prints and writes the table."""

import json
from pathlib import Path

import pytest

from fedpress.compression.models.pruning.settings import Pruning
from fedpress.simulations.studies import pruning
from fedpress.simulations.studies.pruning import SETUPS, PruningSetup, Variant


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a teacher that the first test to need it trains."""
    return tmp_path_factory.mktemp("study") / "teacher.pt"


def test_every_baseline_has_a_row_of_the_same_size() -> None:
    for setup in SETUPS.values():
        for variant in setup.variants.values():
            if variant.baseline:
                baseline = setup.variants[variant.baseline]
                assert baseline.removed_fraction == variant.removed_fraction
                assert baseline.settings.granularity == variant.settings.granularity


def test_the_command_prints_and_writes_the_rows(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticket = Pruning(granularity="weights", schedule="lottery", fine_tune_epochs=1)
    few = {
        "one": Variant(0.9, Pruning(fine_tune_epochs=1)),
        "lottery, fresh": Variant(0.9, ticket, trained_on="fresh"),
        "lottery": Variant(0.9, ticket, "lottery, fresh", "labels"),
        "another": Variant(0.5, Pruning()),
    }
    monkeypatch.setitem(SETUPS, "digits", PruningSetup(3, few))
    written = tmp_path / "rows.json"
    for only in ("one", "lottery"):
        monkeypatch.setattr(
            "sys.argv",
            ["study", "digits", "--only", only, "--seeds", "1", "--teacher", str(kept), "--json", str(written)],
        )
        pruning.main()
        rows = json.loads(written.read_text())
        assert [row["name"] for row in rows] == ["teacher", *(name for name in few if name.startswith(only))]
        assert all(0 < row["accuracy"] <= 1 for row in rows)
        assert all(row["parameters"] == pytest.approx(10_523, rel=0.1) for row in rows[1:])
        assert rows[1]["steps"][0]["kept"] == 1.0
    out = capsys.readouterr().out
    assert "105,226" in out and "lottery, fresh" in out and "another" not in out


@pytest.mark.long
def test_the_command_times_layers_dense_and_sparse(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETUPS, "digits", PruningSetup(1, {}))
    written = tmp_path / "times.json"
    monkeypatch.setattr("sys.argv", ["study", "digits", "--execution", "--teacher", str(kept), "--json", str(written)])
    pruning.main()
    rows = json.loads(written.read_text())
    assert {row["batch"] for row in rows} == {1, 64} and {row["left"] for row in rows} == {0.1, 0.02, 0.005}
    assert all(row["dense_ms"] > 0 and row["sparse_ms"] > 0 for row in rows)
    assert "the model" in capsys.readouterr().out
