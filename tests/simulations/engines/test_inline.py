"""The inline engine: real processes, virtual time, state that lives between rounds."""

import os
import tempfile
from multiprocessing import active_children
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedpress.compression.messages import records
from fedpress.simulations.engines.client_grid import EngineError
from fedpress.simulations.engines.client_states import TEMPORARY
from fedpress.simulations.engines.inline import InlineGrid


def question(node: int, kind: str = "query.count", **config: int) -> Message:
    return Message(RecordDict({"config": ConfigRecord(dict(config))}), dst_node_id=node, message_type=kind)


def counted(replies: list[Message]) -> dict[int, int]:
    return {reply.metadata.src_node_id: reply.content["metrics"]["count"] for reply in replies}  # type: ignore


def test_every_client_keeps_its_own_state_whoever_runs_it(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with InlineGrid("tests.apps.engine_client:app", clients=7, workers=2, log_file=log) as grid:
        assert grid.get_node_ids() == [1, 2, 3, 4, 5, 6, 7]
        for expected in (1, 2, 3):
            replies = grid.send_and_receive([question(node) for node in (2, 5, 7)])
            assert counted(replies) == {2: expected, 5: expected, 7: expected}
        assert counted(grid.send_and_receive([question(1)])) == {1: 1}
        before = grid.states_digest()
        grid.send_and_receive([question(1)])
        assert grid.states_digest() != before


def test_the_workers_seconds_are_told_and_outlive_a_restart() -> None:
    began = perf_counter()
    with InlineGrid("tests.apps.engine_client:app", clients=7, workers=2) as grid:
        grid.send_and_receive([question(node) for node in (2, 5, 7)])
        assert grid.seconds.keys() == {"waiting", "messages", "states", "client"}
        assert 0 < grid.seconds["states"] and grid.seconds.total() <= 2 * (perf_counter() - began)
        saved, seconds = grid.state(), dict(grid.seconds)
    with InlineGrid("tests.apps.engine_client:app", clients=7, workers=1) as grid:
        grid.restore(saved)
        grid.send_and_receive([question(1)])
        assert all(grid.seconds[name] > before for name, before in seconds.items())


def test_large_records_are_shared_but_no_client_sees_what_another_did_to_them() -> None:
    arrays = records.from_numpy({"w": np.arange(100_000, dtype=np.float32)})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
    with InlineGrid("tests.apps.engine_client:app", clients=6, workers=2) as grid:
        for _ in range(4):  # the app spoils the record that it was given
            messages = [Message(content, dst_node_id=node, message_type="query.sum") for node in range(1, 7)]
            replies = grid.send_and_receive(messages)
            assert {reply.content["metrics"]["sum"] for reply in replies} == {float(np.arange(100_000).sum())}


def test_a_client_that_fails_or_dies_costs_only_its_own_reply(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with InlineGrid("tests.apps.engine_client:app", clients=6, workers=2, log_file=log) as grid:
        messages = [question(1), question(2, "query.fail"), question(3, "query.die"), question(4), question(5)]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
        assert sorted(replies) == [1, 2, 3, 4, 5]
        assert "ZeroDivisionError" in str(replies[2].error.reason)
        assert "exit code 9" in str(replies[3].error.reason)
        assert [replies[node].has_error() for node in (1, 4, 5)] == [False] * 3
        assert counted(grid.send_and_receive([question(4)])) == {4: 2}
    assert "ZeroDivisionError" in log.read_text()


def test_workers_that_keep_dying_stop_the_run() -> None:
    with InlineGrid("tests.apps.engine_client:app", clients=9, workers=1) as grid:
        with pytest.raises(EngineError, match="exit code 9.*fewer workers"):
            grid.send_and_receive([question(node, "query.die") for node in range(1, 10)])


def test_an_app_that_does_not_load_is_named_with_its_error() -> None:
    with InlineGrid("tests.apps.engine_client:nothing", clients=1, workers=1) as grid:
        with pytest.raises(EngineError, match="(?s)engine_client:nothing.*has no attribute 'nothing'"):
            grid.send_and_receive([question(1)])


def test_no_process_and_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with InlineGrid("tests.apps.engine_client:app", clients=2, workers=2) as grid:
        grid.send_and_receive([question(1)])
        pids = [process.pid for process in active_children()]
        assert len(pids) == 2 and len(list(tmp_path.glob(f"{TEMPORARY}*"))) == 1
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
