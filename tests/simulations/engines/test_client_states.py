"""Client states on the disk: what was written comes back, and a damaged file is noticed, kept, and said."""

import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedpress.client.state import stores
from fedpress.compression.messages import records
from fedpress.simulations.engines import client_states
from fedpress.simulations.engines.client_grid import EngineError
from fedpress.simulations.engines.inline import InlineGrid

STATE = RecordDict(
    {
        "config": ConfigRecord({"reply": bytes(range(256)), "federation": "f", "numbers": [1, 2]}),
        "first": ArrayRecord(
            {
                "weights": Array(np.arange(12, dtype=np.float32).reshape(3, 4)),
                "none": Array(np.zeros((0, 2), np.int64)),
                "raw": Array("float16", (2,), "own/1", b"abcd"),
            }
        ),
        "metrics": MetricRecord({"loss": 0.5}),
        "second": ArrayRecord({"weights": Array(np.ones(1, np.float64))}),
        "own": records.of_arrays(
            (str(number), records.DerivedArray.of(array, stores.STYPE))
            for number, array in enumerate(
                [
                    np.arange(6, dtype=np.int32).reshape(2, 3),
                    np.arange(6.0).reshape(2, 3).T,
                    np.array(2.5, np.float16),
                    np.zeros((0, 2), np.uint8),
                    np.array([True, False]),
                    np.arange(8, dtype=np.float32)[::-2],
                ]
            )
        ),
    }
)


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_written_comes_back(tmp_path: Path, durable: bool) -> None:
    client_states.write(tmp_path, 3, STATE, durable=durable)
    client_states.write(tmp_path, 4, RecordDict(), durable=durable)
    back = client_states.read(tmp_path, 3)
    assert back == STATE and list(back["first"]) == list(STATE["first"])
    assert [path.name for path in tmp_path.iterdir()] == ["state-3"]
    assert client_states.read(tmp_path, 4) == RecordDict()


def test_a_file_that_ends_early_or_late_is_moved_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    client_states.write(tmp_path, 0, STATE, durable=False)
    whole = client_states.path_of(tmp_path, 0).read_bytes()
    cuts = range(0, len(whole), 7)
    for damaged in [*(whole[:cut] for cut in cuts), whole + b"x", b"\xff" * 40]:
        client_states.path_of(tmp_path, 0).write_bytes(damaged)
        assert client_states.read(tmp_path, 0) == RecordDict()
        assert not client_states.path_of(tmp_path, 0).exists()
    assert len(list(tmp_path.glob("*.damaged*"))) == caplog.text.count("the state of client 0 is damaged") > 40
    assert "it goes on after its end" in caplog.text


def test_two_engines_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_states, "LOCK_SECONDS", 0.1)
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path):
        with pytest.raises(EngineError, match="another run is at work"):
            InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path)
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path):
        assert sorted(path.name.rstrip("abcdefghijklmnopqrstuvwxyz0123456789_") for path in tmp_path.iterdir()) == [
            "", "fedpress-",
        ]  # fmt: skip
