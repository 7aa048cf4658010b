"""Children end with their parent, in order and once; locks, and loops of failures."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpress.simulations.deploy import children

POLITE = """
import signal, sys, time
count = 0
def end(*_):
    global count
    count += 1
    print("asked", flush=True)
    if count == 1:
        time.sleep(0.5)
        print("signed off", flush=True)
        sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("here", flush=True)
time.sleep(60)
"""


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.05)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def home_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "FLWR_HOME": str(folder)}


def test_a_child_is_stopped_in_order(tmp_path: Path) -> None:
    child = children.Child(python(POLITE), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    assert len(children.belonging_to(tmp_path)) == 1 and child.ended() is None
    child.stop()
    assert list(child.tail) == ["here", "asked", "signed off"]
    assert child.ended() == 3 and children.belonging_to(tmp_path) == {}


def test_a_child_of_a_killed_parent_is_asked_once_and_signs_off(tmp_path: Path) -> None:
    """The parent has several threads, for each of which the kernel would send a signal of its own."""
    parent = subprocess.Popen(
        python(
            "import threading, time, os; from pathlib import Path;"
            "from fedpress.simulations.deploy import children;"
            "[threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(4)];"
            f"children.Child([{sys.executable!r}, '-c', {POLITE!r}], {{**os.environ, 'FLWR_HOME': {str(tmp_path)!r}}},"
            f" Path({str(tmp_path / 'log')!r})); time.sleep(60)"
        )
    )
    try:
        until(lambda: (tmp_path / "log").exists() and "here" in (tmp_path / "log").read_text())
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not children.belonging_to(tmp_path))
    assert (tmp_path / "log").read_text().split("\n") == ["here", "asked", "signed off", ""]


def test_a_child_whose_guard_is_killed_ends_too(tmp_path: Path) -> None:
    child = children.Child(python(POLITE), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    (command,) = children.belonging_to(tmp_path)
    guard = int(Path(f"/proc/{command}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guard, signal.SIGKILL)
    until(lambda: not children.belonging_to(tmp_path))
    assert child.ended() == -signal.SIGKILL


@pytest.mark.slow
def test_one_that_does_not_listen_is_made_to_end(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    )
    child = children.Child(python(deaf), home_of(tmp_path), tmp_path / "log")
    until(lambda: "here" in child.tail)
    child.stop()
    assert child.ended() is not None and children.belonging_to(tmp_path) == {}


def test_an_orphan_of_the_same_home_is_ended_and_no_other(tmp_path: Path) -> None:
    here, there = ({**os.environ, "FLWR_HOME": str(tmp_path / name)} for name in ("a", "b"))
    orphan, other = (subprocess.Popen(python("import time; time.sleep(60)"), env=env) for env in (here, there))
    try:
        until(lambda: children.belonging_to(tmp_path / "a") and children.belonging_to(tmp_path / "b"))
        reaper = threading.Thread(target=orphan.wait)
        reaper.start()
        assert children.end_all(tmp_path / "a", wait=0.0) == 1
        reaper.join()
        assert orphan.returncode == -signal.SIGTERM and other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


def test_memory_of_a_child_is_limited(tmp_path: Path) -> None:
    child = children.Child(python("bytearray(2**30)"), home_of(tmp_path), tmp_path / "log", memory=2**29)
    until(lambda: child.ended() is not None)
    assert child.ended() == 1 and "MemoryError" in child.tail


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    with children.locked(tmp_path, "a client"):
        with pytest.raises(children.ServiceError, match=f"is running already \\(process {os.getpid()}\\)"):
            with children.locked(tmp_path, "a client"):
                pass
    with children.locked(tmp_path, "a client"):
        pass


def test_failures_that_take_long_or_get_on_or_differ_are_no_loop() -> None:
    failures = children.Failures(3, 60.0)
    assert not any(failures.hopeless("killed", 61.0) for _ in range(5))
    assert not any(failures.hopeless("killed", 1.0, got_on=True) for _ in range(5))
    assert not any(failures.hopeless(reason, 1.0) for reason in ("a", "b", "a", "b"))
    assert [failures.hopeless("b", 1.0) for _ in range(3)] == [False, True, True]
