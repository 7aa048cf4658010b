"""The command that installs a missing extra names where this installation came from, as pip has recorded it."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fedpress.compression import install


class Recorded(metadata.Distribution):
    """A distribution that pip has installed from a given place; None: from an index."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, filename: str) -> str | None:
        return None if self._origin is None or filename != "direct_url.json" else json.dumps(self._origin)

    def locate_file(self, path: Any) -> Any:
        return Path(path)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"dir_info": {"editable": True}}, "pip install -e '{folder}[client]'"),
        ({"dir_info": {}}, "pip install '{folder}[client]'"),
        ({"archive_info": {}}, "pip install 'fedpress[client] @ {folder.as_uri()}'"),
        (
            None,
            "pip install 'fedpress[client]' --find-links FOLDER, with the folder that holds its wheel: fedpress is"
            " not on PyPI",
        ),
    ],
)  # fmt: skip
def test_the_origin_that_pip_has_recorded_is_named(
    origin: dict[str, Any] | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    recorded = None if origin is None else {"url": folder.as_uri(), **origin}
    monkeypatch.setattr(metadata, "distribution", lambda name: Recorded(recorded))
    expected = command.replace("{folder.as_uri()}", folder.as_uri()).replace("{folder}", str(folder))
    assert install.command("client") == expected
    folder.rmdir()
    if recorded:  # what is gone cannot be installed from
        assert install.command("client") == "pip install '.[client]' in a checkout of fedpress, which is not on PyPI"


def test_a_checkout_that_is_run_by_its_path_is_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert install.command("hub") == "pip install '.[hub]' in a checkout of fedpress, which is not on PyPI"


def test_the_command_of_this_installation_is_one_that_pip_takes() -> None:
    command = install.command("client")
    if "FOLDER" in command or "checkout" in command:
        pytest.skip("this installation has no recorded origin")
    what = command.removeprefix("pip install ").replace("'", "").split(" ", 1 if "-e" in command else 0)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "--no-build-isolation", *what],
        capture_output=True,
        text=True,
    )
    assert "Would install fedpress" in done.stdout or "already satisfied" in done.stdout, done.stderr


def test_no_other_text_names_a_package_index() -> None:
    root = Path(__file__).parents[2]
    folders = ("client", "compression", "server", "simulations", ".pkg")
    texts = {path: path.read_text(encoding="utf-8") for folder in folders for path in (root / folder).rglob("*.py")}
    naming = [path.relative_to(root).as_posix() for path, text in texts.items() if "pip install 'fedpress" in text]
    assert naming == ["compression/install.py"]
