"""The parent's end of a worker: a real process that answers, its environment, and its end."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedpress.compression.messages import records
from fedpress.simulations.engines import _flower, worker
from fedpress.simulations.engines.worker import Worker
from fedpress.simulations.engines.worker_process import RUN_ID, Done, WorkerStart, WorkerTask

APP = "tests.apps.engine_client:app"


def started(folder: Path, app: str = APP) -> Worker:
    """Start a worker for three clients; `folder` gets their states."""
    return Worker(WorkerStart(app, 3, {}, folder, folder, None, None, tuple(sys.path), dict(os.environ)))


def task(number: int, client: int = 0, kind: str = "query.count") -> WorkerTask:
    _flower.identify(RUN_ID, 1, 0)
    message = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=client + 1, message_type=kind)
    records.set_id(message, f"message-{number}")
    return WorkerTask(f"message-{number}", client, records.message_to_bytes(message), ("config",), ())


def answer(running: Worker) -> tuple[Done, Message]:
    assert running.pipe.poll(60)
    done: Done = running.pipe.recv()
    assert isinstance(done, Done), done
    return done, records.message_from_bytes(done.reply)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Worker]:
    process = started(tmp_path)
    yield process
    process.stop()


def test_tasks_are_answered_in_their_order_and_held_until_then(running: Worker) -> None:
    for number in (1, 2, 3):
        running.send(task(number))
    assert running.under_way == ["message-1", "message-2", "message-3"]
    for number in (1, 2, 3):
        done, reply = answer(running)
        assert (done.message_id, done.seconds > 0) == (f"message-{number}", True)
        assert reply.content["metrics"]["count"] == number  # type: ignore[index]


def test_an_error_of_the_client_is_a_reply_and_the_worker_goes_on(running: Worker) -> None:
    running.send(task(1, kind="query.fail"))
    running.send(task(2))
    assert "ZeroDivisionError: as asked" in str(answer(running)[1].error.reason)
    assert answer(running)[1].has_content()


def test_a_worker_ends_when_it_is_stopped_and_takes_no_task_after_its_death(tmp_path: Path) -> None:
    process = started(tmp_path)
    process.send(task(1))
    answer(process)
    pid = process.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    process.process.join(10)
    process.send(task(2))  # no error: who reads the pipe sees its end, and answers for the worker
    process.stop()
    assert process.process.exitcode == -signal.SIGKILL


def test_an_app_that_does_not_load_is_told_with_its_traceback(tmp_path: Path) -> None:
    process = started(tmp_path, "tests.apps.engine_client:nothing")
    assert process.pipe.poll(60) and "has no attribute 'nothing'" in process.pipe.recv()
    process.stop()


@pytest.mark.parametrize("before", [None, "glibc.malloc.check=3"])
def test_children_start_with_one_thread_and_the_environment_is_as_before(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv(worker.TUNABLES, raising=False)
    if before:
        monkeypatch.setenv(worker.TUNABLES, before)
    environment = dict(os.environ)
    with worker.worker_environment():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
        assert os.environ[worker.TUNABLES] == (before or "glibc.malloc.hugetlb=1")
    assert dict(os.environ) == environment


def test_children_start_deaf_to_ctrl_c_and_the_parent_hears_it_again() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with worker.deaf_to_ctrl_c():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
