"""The benchmark of the wire: rounds are cut where they end, and the real thing keeps to its few requests."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpress.simulations.__main__ import main
from fedpress.simulations.benchmarks.byte_counter import Request
from fedpress.simulations.benchmarks.wire import Bytes, Wire, rounds_of

POLL, BEAT, OBJECT, SEND, PUSH = (
    "pull-messages", "send-node-heartbeat", "pull-object", "push-messages", "push-object",
)  # fmt: skip


def cut(*kinds: str) -> list[tuple[list[str], list[str]]]:
    requests = [Request(float(i), f"/v1/fleet/{kind}", 1, 1) for i, kind in enumerate(kinds)]
    return [
        tuple([request.path.rpartition("/")[2] for request in part] for part in round)  # type: ignore[misc]
        for round in rounds_of(requests)
    ]


def test_a_round_ends_with_the_answer_and_polls_in_vain_stand_apart() -> None:
    assert cut(POLL, POLL, OBJECT, SEND, PUSH, PUSH, POLL, POLL, OBJECT, SEND, PUSH, POLL, POLL) == [
        ([POLL, OBJECT, SEND, PUSH, PUSH], [POLL]),
        ([POLL, OBJECT, SEND, PUSH], [POLL]),
    ]


def test_heartbeats_neither_end_a_round_nor_make_a_poll_count() -> None:
    assert cut(BEAT, POLL, BEAT, OBJECT, SEND, BEAT, PUSH) == [([POLL, OBJECT, SEND, PUSH], [BEAT] * 3)]
    assert cut(POLL, BEAT, POLL, OBJECT, SEND) == [([POLL, OBJECT, SEND], [BEAT, POLL])]


def test_without_an_answer_there_is_no_round() -> None:
    assert cut() == cut(POLL, POLL, BEAT) == cut(POLL, OBJECT) == []


def test_beside_the_payload_is_all_the_rest() -> None:
    app = Wire("app", Bytes(1000, 900), Bytes(9000, 3000), Bytes(850, 128), Bytes(), {})
    assert app.beside == Bytes(8850, 2228)


def test_at_least_two_rounds_are_needed() -> None:
    done = CliRunner().invoke(main, ["bench", "wire", "--rounds", "1"])
    assert done.exit_code == 2
    assert "expected at least 2, since the first is left out" in done.stderr


@pytest.mark.slow
@pytest.mark.deployment
def test_a_round_of_real_processes_takes_nine_requests(tmp_path: Path) -> None:
    """The least that Flower allows: one record each way is three objects, each pulled or pushed by a request."""
    file = tmp_path / "figures.json"
    changes = ["--set", "training.epochs=1", "--set", "partition.sizes=equal"]
    arguments = ["bench", "wire", "--rounds", "2", "--idle", "4", *changes, "--json", str(file)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text())
    ours, plain = figures["apps"]
    needed = {"pull-messages": 1, "pull-object": 3, "confirm-message-received": 1, "push-messages": 1, "push-object": 3}
    assert {kind: count for kind, count in ours["counts"].items() if "in vain" not in kind} == needed
    # Polls depend on the machine's speed; the goal, 11 kB up and 3 kB down, leaves room for two.
    assert 0 < ours["requests"]["up"] - ours["payload"]["up"] < 11_000 - 2 * figures["poll"]["up"]
    assert 0 < ours["requests"]["down"] - ours["payload"]["down"] < 3_000 - 2 * figures["poll"]["down"]
    for direction in ("up", "down"):
        assert ours["payload"][direction] > 500
        assert ours["requests"][direction] < plain["requests"][direction]
        assert figures["idle"][direction] > 0
        # Handshakes of some kB, and 22 bytes a record: nothing else is hidden behind TLS.
        assert 0 < ours["tls"][direction] < 5_000 * ours["connections"] + 22 * 4 * 20
    patience = time.monotonic() + 10  # what was killed takes a moment to go
    while left := [path for path in Path("/proc").glob("[0-9]*/environ") if b"fedpress-wire-" in readable(path)]:
        assert time.monotonic() < patience, left
        time.sleep(0.1)


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes() if os.access(path, os.R_OK) else b""
    except OSError:  # it has ended
        return b""
