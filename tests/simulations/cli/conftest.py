"""A run that several files look at, and what a command that is refused must leave alone."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.apps.command_line import ShortRun, fedpress, invoke

SHORT = ["--set", "rounds=2", "--set", "students.distill.epochs=2", "--set", "workers=1"]


def _make(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    key, pem = Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    raw, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, raw, no_password))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub.pem").write_bytes(public)
    assert fedpress("init", "study", cwd=folder).returncode == 0
    signed = ["--set", f"students.signing_key={folder}/key.pem"]
    done = fedpress("simulate", "study", *SHORT, *signed, "--out", "run", "--json", "figures.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    (folder / "stdout").write_text(done.stdout)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """The run, made by the first of pytest's processes that needs it; the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "short-run"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "stdout").exists():
            _make(folder)
    return ShortRun(folder, *((folder / name).read_text() for name in ("stdout", "stderr")))


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], str]]:
    """Return the error of a command that must fail, in a folder that holds only `full/text`, and leave that alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text").write_text("hello")

    def call(arguments: list[str]) -> str:
        done = invoke(*arguments)
        assert done.exit_code == 2
        assert isinstance(done.exception, SystemExit)  # not an exception that Python would show with a traceback
        return " ".join(done.stderr.split())

    yield call
    assert [path.name for path in tmp_path.iterdir()] == ["full"]  # no half-made run folder is left behind
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["text"]
