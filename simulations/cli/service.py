"""The commands that run fedpress as a service: `fedpress keys`, `fedpress server`, `fedpress client`."""

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

keys = typer.Typer(no_args_is_help=True, **common.PLAIN)
TERMINATED = 143
"""Exit code after SIGTERM, as shells have it."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", **common.DOCUMENTED)]
Name = Annotated[str, typer.Argument(metavar="NAME", **common.DOCUMENTED)]
Days = Annotated[int, typer.Option(help="Days that the certificate is valid (365).", **common.COUNT)]
SuperLink = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The running server (127.0.0.1:9092).", show_default=False)
]
Settings = Annotated[Path | None, typer.Argument(metavar="FILE", **common.DOCUMENTED)]
Example = Annotated[bool, typer.Option("--example", help="Print a settings file to start from, every key explained.")]
Install = Annotated[
    bool, typer.Option("--install", help="Write a systemd user unit for FILE, and say how to start it.")
]


@keys.callback()
def _keys() -> None:
    """Make and manage certificates and node keys.

    \b
    On the server:
      fedpress keys init keys --host fed.example.org    once
      fedpress keys node keys phone-1                   a node's key; or make it on the device,
                                                        and copy its .pub into keys/nodes
    The server lets in every node whose public key is in keys/nodes.
    """


@keys.command("init")
def keys_init(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name or address of the server, as clients use it; repeatable."),
    ] = None,
    days: Days = 365,
) -> None:
    """Make an authority and the server's certificate.

    All goes into DIR, which gets mode 700, private keys 600. Nothing is overwritten. localhost is always
    among the names. The authority is valid for ten years.

    \b
    Example:
      fedpress keys init keys --host fed.example.org --host 192.0.2.7
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import keys as service

        made = service.init(folder, host or (), days)
        typer.echo(f"wrote {made.ca}, which clients need, and {made.server}; keep {made.ca_key} safe")


@keys.command("renew")
def keys_renew(
    folder: Folder,
    host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Other names than before; repeatable.")] = None,
    days: Days = 365,
) -> None:
    """Replace the server's certificate and key.

    Clients need nothing new. Restart the server, which then takes it.

    \b
    Example:
      fedpress keys renew keys
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import keys as service

        made = service.renew(folder, days, host or ())
        typer.echo(f"wrote {made.server}, valid for {days} days; restart the server")


@keys.command("node")
def keys_node(folder: Folder, name: Name) -> None:
    """Make the key pair of a node.

    It is DIR/nodes/NAME and NAME.pub. Best made on the device itself, in any folder:
    then only NAME.pub travels. Made on the server, NAME has to be moved to the device.

    \b
    Example:
      fedpress keys node keys phone-1
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import keys as service

        private, public = service.node(folder, name)
        typer.echo(f"wrote {private}, the device's secret, and {public}, for the server's keys/nodes")


@keys.command("certificate")
def keys_certificate(folder: Folder, name: Name, days: Days = 365) -> None:
    """Make a client's certificate, for a hub that asks.

    It is DIR/clients/NAME.crt, and its key NAME.key.

    \b
    Example:
      fedpress keys certificate keys phone-1
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import keys as service

        certificate, key = service.client(folder, name, days)
        typer.echo(f"wrote {certificate} and {key}")


@keys.command("register")
def keys_register(folder: Folder, superlink: SuperLink = "127.0.0.1:9092") -> None:
    """Let in every node of DIR/nodes.

    `fedpress server` does so by itself, also while it runs; this is for a SuperLink
    that was started otherwise.

    \b
    Example:
      fedpress keys register keys --superlink fed.example.org:9092
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import control
        from fedpress.simulations.deploy import keys as service

        found = service.Folder(folder)
        added, problems = control.register_all(control.Control(superlink, found.ca), found)
        typer.echo(f"registered {', '.join(added)}" if added else "nobody new is registered")
        if problems:
            common.leave("\n".join(f"error: {problem}" for problem in problems), 2)


@keys.command("revoke")
def keys_revoke(folder: Folder, name: Name, superlink: SuperLink = "127.0.0.1:9092") -> None:
    """Shut a node out, for ever.

    NAME.pub becomes NAME.revoked, and the SuperLink forgets the node.

    \b
    Example:
      fedpress keys revoke keys phone-1
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import control
        from fedpress.simulations.deploy import keys as service

        found = service.Folder(folder)
        link = control.Control(superlink, found.ca)
        known = {node.public_key: node for node in link.nodes() if node.status != "unregistered"}
        aside = service.revoke(folder, name)  # first: a server that runs would register it again
        node = known.get(service.public_bytes(aside))
        if node is not None:
            link.unregister(node.id)
        typer.echo(f"revoked {name}" + (f", node {node.id}" if node else ", which was not registered"))


@keys.command("list")
def keys_list(folder: Folder, superlink: SuperLink = "127.0.0.1:9092", json_file: common.JsonOption = None) -> None:
    """Show the nodes of a running SuperLink.

    Their names are those of their keys in DIR.

    \b
    Example:
      fedpress keys list keys
    """
    with common.clear_errors("server", json_file):
        from fedpress.simulations.deploy import control
        from fedpress.simulations.deploy import keys as service

        found = service.Folder(folder)
        nodes = control.Control(superlink, found.ca).nodes()
        names, rows = {}, []
        for path in [*found.public_keys().values(), *found.nodes.glob(f"*{service.REVOKED}")]:
            try:
                names[service.public_bytes(path)] = path.stem
            except service.KeysError:
                rows.append((path.stem, "", "damaged"))
        rows += [(names.pop(node.public_key, "?"), str(node.id), node.status) for node in nodes]
        rows += [(name, "", "not registered") for name in names.values()]
        common.show_rows(("name", "node", "status"), sorted(rows))
        common.write_json(json_file, [dict(zip(("name", "node", "status"), row, strict=True)) for row in sorted(rows)])


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
