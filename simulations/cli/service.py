"""`fedpress server` and `fedpress client`: federated training as services on several machines."""

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
Example = Annotated[bool, typer.Option("--example", help="Print a settings file with every key explained.")]
Install = Annotated[
    bool, typer.Option("--install", help="Write a systemd user unit for FILE, and print how to start it.")
]


def server(file: Settings = None, example: Example = False, install: Install = False) -> None:
    """Run a federation over TLS, to the end of one run.

    FILE is a YAML file of settings; --example prints one. The run trains a scenario with
    the nodes whose public keys are in the keys folder, and continues by itself after a
    crash of the app, of Flower or of this machine. The exit code is 0 once the run is
    finished, 130 after Ctrl-C and 143 after SIGTERM; the same command then continues
    the run.

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
            settings.load(_given(file), settings.ServerSettings)  # a unit with invalid settings could never start
            _install("server", _given(file))
            return
        chosen = settings.load(_given(file), settings.ServerSettings)
        from fedpress.simulations.deploy.service import Service

        service = Service(chosen, _say)
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
            common.leave(f"stopped after round {rounds}; to continue: fedpress server {file}", code)
        else:
            typer.echo("the run is finished")


def client(file: Settings = None, example: Example = False, install: Install = False) -> None:
    """Take part in a federation with this device.

    FILE is a YAML file of settings; --example prints one. The daemon keeps a Flower
    SuperNode running, reconnects after every failure, trains only during the hours and
    under the conditions of FILE, and leaves no process behind when it ends. It needs no
    privileges; SIGTERM and Ctrl-C stop it. The state that a client keeps between rounds
    is on disk, and survives restarts.

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
        chosen = settings.load(_given(file), settings.ClientSettings)
        if install:
            _install("client", _given(file))
            return
        from fedpress.simulations.deploy.daemon import EdgeDaemon

        service = EdgeDaemon(chosen, _say)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            service.stop()

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, stop)
        service.run()


def _given(file: Path | None) -> Path:
    if file is None:
        common.leave("error: no FILE of settings was given; --example prints one to start from", 2)
    return file


def _say(text: str) -> None:
    """Print a line without delay; with the time, unless systemd's journal adds it."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else f"{datetime.now():%H:%M:%S} "
    from fedpress.simulations.report import plain

    typer.echo(f"{stamp}{plain.printable(text, keep=chr(10))}")
    sys.stdout.flush()


def _example(kind: str) -> str:
    from fedpress.simulations.deploy import settings
    from fedpress.simulations.scenario import template

    example = settings.SERVER_EXAMPLE if kind == "server" else settings.CLIENT_EXAMPLE
    head = f"# For: fedpress {kind} {kind}.yaml\n# Paths are relative to this file's folder. Keys with"
    head += " defaults may be left out.\n\n"
    return head + template.commented(example).rstrip("\n")


UNIT = """\
[Unit]
Description=fedpress {kind}, {described}

[Service]
ExecStart={python} -m fedpress.simulations {kind} {file}
Restart=on-failure
RestartSec=10
# 2: the settings are invalid, so a restart would not help.
RestartPreventExitStatus=2
SuccessExitStatus=130 143
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def _install(kind: str, file: Path) -> None:
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
    """Return one word of a unit's command line, quoted; systemd expands `%` and `$` there."""
    for special, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(special, written)
    return f'"{text}"'
