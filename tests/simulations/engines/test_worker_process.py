"""A worker process: it ends with its parent, and its log goes to a file."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpress.simulations.engines import worker_process

PARENT = """
import os, sys, time
from pathlib import Path
from fedpress.simulations.engines.worker import Worker
from fedpress.simulations.engines.worker_process import WorkerStart

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    app, paths = "tests.apps.engine_client:app", tuple(sys.path)
    start = WorkerStart(app, 1, {}, folder, folder, None, None, paths, dict(os.environ))
    print(Worker(start).process.pid, flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while alive(worker):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_log_goes_to_the_end_of_a_file_and_then_where_it_went(tmp_path: Path) -> None:
    logger, path = logging.getLogger("flwr"), tmp_path / "run.log"
    before = list(logger.handlers)
    path.write_text("the first run\n")
    with worker_process.log_to_file(path) as log:
        log.error("the second")
    assert logger.handlers == before
    first, second = path.read_text().splitlines()
    assert first == "the first run" and second.endswith("ERROR the second")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_log_on_a_full_disk_is_short_and_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    with worker_process.log_to_file(Path("/dev/full")) as log:
        log.error("this does not fit")
    assert capfd.readouterr().err == ""


def test_without_a_file_the_log_stays_where_it_goes() -> None:
    before = list(logging.getLogger("flwr").handlers)
    with worker_process.log_to_file(None) as log:
        assert log.handlers == before
