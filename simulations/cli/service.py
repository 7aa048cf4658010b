"""`fedpress server` and `fedpress client`: fedpress as a service."""

from __future__ import annotations

import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedpress.simulations.cli import common

TERMINATED = 143
"""Exit code after SIGTERM, as shells have it."""

Settings = Annotated[Path | None, typer.Argument(metavar="FILE", **common.DOCUMENTED)]
Example = Annotated[bool, typer.Option("--example", help="Print a settings file to start from, every key explained.")]
Install = Annotated[
    bool, typer.Option("--install", help="Write a systemd user unit for FILE, and say how to start it.")
]


def server(file: Settings = None, example: Example = False, install: Install = False) -> None:
    """Run a federation over TLS, to the end of one run.

    FILE is YAML; --example prints one. The run trains a scenario, with the nodes whose
    public keys are in the keys folder, and goes on by itself after a crash of the app,
    of Flower or of this machine. It ends with exit code 0 when the run is finished,
    and stops in order on Ctrl-C (130) and SIGTERM (143); the same command then goes on.

    \b
    Examples:
      fedpress server --example > server.yaml
      fedpress server server.yaml
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import settings

        if example:
            typer.echo(_example("server"))
            return
        if install:
            _install("server", _given(file), settings.load(_given(file), settings.Server))
            return
        chosen = settings.load(_given(file), settings.Server)
        from fedpress.simulations.deploy.service import Server

        service = Server(chosen, _say)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda number, _frame: service.stop(number))
        ended = service.run()
        if ended.results is not None and ended.results.status == "finished" and ended.results.accuracy is not None:
            from fedpress.simulations.report import run_page

            typer.echo(f"the run is finished: accuracy {100 * ended.results.accuracy:.1f} %")
            typer.echo(f"report: {run_page.write(Path(chosen.out))}")
        elif ended.signal:
            rounds = len(ended.results.rounds) if ended.results else 0
            code = common.INTERRUPTED if ended.signal == signal.SIGINT else TERMINATED
            common.leave(f"stopped after round {rounds}; to go on: fedpress server {file}", code)
        else:
            typer.echo("the run is finished")


def client(file: Settings = None, example: Example = False, install: Install = False) -> None:
    """Take part in a federation with this device.

    FILE is YAML; --example prints one. The daemon keeps a Flower SuperNode running, waits for the server, comes back
    after every trouble, trains only in the hours and under the conditions of FILE, and
    leaves no process behind when it ends. Runs as an ordinary user; SIGTERM or Ctrl-C
    stop it. What it keeps between rounds survives everything but the disk.

    \b
    Examples:
      fedpress client --example > client.yaml
      fedpress client client.yaml
      fedpress client client.yaml --install
    """
    with common.clear_errors("client"):
        from fedpress.simulations.deploy import settings

        if example:
            typer.echo(_example("client"))
            return
        chosen = settings.load(_given(file), settings.Client)
        if install:
            _install("client", _given(file), chosen)
            return
        from fedpress.simulations.deploy.daemon import Client

        service = Client(chosen, _say)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            service.stop()

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, stop)
        service.run()


def _given(file: Path | None) -> Path:
    if file is None:
        common.leave("error: which settings? Give a FILE; --example prints one to start from", 2)
    return file


def _say(text: str) -> None:
    """Print a line at once; with the time, unless systemd's journal has it already."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else f"{datetime.now():%H:%M:%S} "
    typer.echo(f"{stamp}{text}")
    sys.stdout.flush()


def _example(kind: str) -> str:
    from fedpress.simulations.deploy import settings
    from fedpress.simulations.scenario import template

    found = settings.SERVER_EXAMPLE if kind == "server" else settings.CLIENT_EXAMPLE
    head = f"# For: fedpress {kind} {kind}.yaml\n# Paths are relative to this file's folder. Keys with"
    head += " defaults may be left out.\n\n"
    return head + template.commented(found).rstrip("\n")


UNIT = """\
[Unit]
Description=fedpress {kind}, {described}

[Service]
ExecStart={python} -m fedpress.simulations {kind} {file}
Restart=on-failure
RestartSec=10
# 2: the settings are wrong, and trying again would not help.
RestartPreventExitStatus=2
SuccessExitStatus=130 143
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def _install(kind: str, file: Path, _checked: object) -> None:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    name = re.sub(r"[^A-Za-z0-9:_.-]", "-", file.stem)  # systemd takes no others
    unit = config / "systemd" / "user" / f"fedpress-{name}.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    path = str(file.resolve())
    words = {"python": _word(sys.executable), "file": _word(path), "described": path.replace("%", "%%")}
    unit.write_text(UNIT.format(kind=kind, **words), encoding="utf-8")
    typer.echo(f"wrote {unit}\nstart it, now and at every boot:")
    typer.echo(f"  systemctl --user daemon-reload\n  systemctl --user enable --now {unit.stem}")
    typer.echo("  loginctl enable-linger    # so that it runs while nobody is logged in")
    typer.echo(f"its log: journalctl --user -u {unit.stem} -f")


def _word(text: str) -> str:
    """Return one word of a unit's command line; `%` and `$` would stand for something else there."""
    for special, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(special, written)
    return f'"{text}"'
