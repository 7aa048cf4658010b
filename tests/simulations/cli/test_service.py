"""`fedpress server` and `client`: examples, bad input and systemd units; tests/simulations/deploy runs them."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.command_line import invoke

from fedpress.simulations.deploy import settings

Refused = Callable[[list[str]], str]
CLIENT = "superlink: localhost:9092\nkey: key\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["server"], "no FILE of settings was given; --example prints one to start from"),
        (["client", "--install"], "no FILE of settings was given; --example prints one to start from"),
        (["server", "none.yaml"], "`fedpress server --example` prints one to start from"),
        (["client", "full/text"], "full/text"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(arguments)


@pytest.mark.parametrize(
    ("kind", "section"), [("server", settings.ServerSettings), ("client", settings.ClientSettings)]
)
def test_the_example_is_a_settings_file(
    kind: str, section: type[settings.ServerSettings] | type[settings.ClientSettings], tmp_path: Path
) -> None:
    printed = invoke(kind, "--example")
    assert printed.exit_code == 0 and f"# For: fedpress {kind} {kind}.yaml" in printed.stdout
    (tmp_path / "file.yaml").write_text(printed.stdout)
    assert isinstance(settings.load(tmp_path / "file.yaml", section), section)


def test_install_writes_a_unit_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "phone.yaml").write_text(CLIENT)
    done = invoke("client", str(tmp_path / "phone.yaml"), "--install")
    assert done.exit_code == 0 and "systemctl --user enable --now fedpress-phone" in done.stdout
    unit = (tmp_path / "config" / "systemd" / "user" / "fedpress-phone.service").read_text()
    assert f'ExecStart="{sys.executable}" -m fedpress.simulations client "{tmp_path / "phone.yaml"}"' in unit
    assert "KillMode=mixed" in unit  # the guard ends the children in order
    (tmp_path / "phone.yaml").write_text(CLIENT + "hour: 3\n")
    assert invoke("client", str(tmp_path / "phone.yaml"), "--install").exit_code == 2


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("kind", ["client", "server"])
@pytest.mark.parametrize("name", ["phone", "my phone", 'of 100%h $HOME "x" \\x'])
def test_systemd_takes_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # without one it knows of no user
    (tmp_path / name).mkdir()
    file = tmp_path / name / f"{name}.yaml"
    file.write_text(CLIENT if kind == "client" else "scenario: digits\n")
    done = invoke(kind, str(file), "--install")
    assert done.exit_code == 0, done.output
    (unit,) = (tmp_path / "config" / "systemd" / "user").glob("*.service")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    (command,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    undone = command.replace("%%", "%").replace("$$", "$")
    assert shlex.split(undone.removeprefix("ExecStart="))[-1] == str(file)
