"""`fedpress keys`: commands for certificates and node keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpress.simulations.cli import common

keys = typer.Typer(no_args_is_help=True, **common.PLAIN)

Folder = Annotated[Path, typer.Argument(metavar="DIR", **common.DOCUMENTED)]
Name = Annotated[str, typer.Argument(metavar="NAME", **common.DOCUMENTED)]
Days = Annotated[int, typer.Option(help="Days that the certificate is valid (365).", **common.COUNT)]
SuperLink = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The running server (127.0.0.1:9092).", show_default=False)
]


@keys.callback()
def _keys() -> None:
    """Make and manage certificates and node keys.

    \b
    On the server:
      fedpress keys init keys --host fed.example.org    once
      fedpress keys node keys phone-1                   a node's key; or make it on the device,
                                                        and copy its .pub into keys/nodes
    The server admits every node whose public key is in keys/nodes.
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

    DIR gets the files, and mode 700; private keys get mode 600. Nothing is overwritten.
    The certificate is always valid for localhost, too. The authority is valid for ten
    years.

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
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Names in place of the present ones; repeatable.")
    ] = None,
    days: Days = 365,
) -> None:
    """Replace the server's certificate and key.

    The authority stays, so clients need no change. Restart the server afterwards.

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

    Writes DIR/nodes/NAME, the private key, and NAME.pub. Best made on the device
    itself, in any folder: then only NAME.pub is copied to the server. If made on the
    server, NAME has to be moved to the device.

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
    """Make a certificate for a client of a hub.

    Writes DIR/clients/NAME.crt and its key NAME.key, for a hub with --client-ca.

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
    """Register every node of DIR/nodes with a SuperLink.

    `fedpress server` does so by itself, also for keys that are added while it runs. The
    command is for a SuperLink that was started without it.

    \b
    Example:
      fedpress keys register keys --superlink fed.example.org:9092
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import control, operators
        from fedpress.simulations.deploy import keys as service

        paths = service.Folder(folder)
        added, problems = control.register_all(control.Control(superlink, paths.ca, operators.token(paths)), paths)
        typer.echo(f"registered {', '.join(added)}" if added else "no new node to register")
        if problems:
            common.leave("\n".join(f"error: {problem}" for problem in problems), 2)


@keys.command("revoke")
def keys_revoke(folder: Folder, name: Name, superlink: SuperLink = "127.0.0.1:9092") -> None:
    """Revoke a node's key, for good.

    NAME.pub is renamed to NAME.revoked, and the node is unregistered from the SuperLink.

    \b
    Example:
      fedpress keys revoke keys phone-1
    """
    with common.clear_errors("server"):
        from fedpress.simulations.deploy import control, operators
        from fedpress.simulations.deploy import keys as service

        paths = service.Folder(folder)
        link = control.Control(superlink, paths.ca, operators.token(paths))
        known = {node.public_key: node for node in link.nodes() if node.status != "unregistered"}
        revoked = service.revoke(folder, name)  # first: a running server would register it again
        node = known.get(service.public_bytes(revoked))
        if node is not None:
            link.unregister(node.id)
        typer.echo(f"revoked {name}" + (f", node {node.id}" if node else ", which was not registered"))


@keys.command("list")
def keys_list(folder: Folder, superlink: SuperLink = "127.0.0.1:9092", json_file: common.JsonOption = None) -> None:
    """Show the nodes of a running SuperLink.

    Names are those of the key files in DIR; a node without one is shown as "?".

    \b
    Example:
      fedpress keys list keys
    """
    with common.clear_errors("server", json_file):
        from fedpress.simulations.deploy import control, operators
        from fedpress.simulations.deploy import keys as service

        paths = service.Folder(folder)
        nodes = control.Control(superlink, paths.ca, operators.token(paths)).nodes()
        names, rows = {}, []
        for path in [*paths.public_keys().values(), *paths.nodes.glob(f"*{service.REVOKED}")]:
            try:
                names[service.public_bytes(path)] = path.stem
            except service.KeysError:
                rows.append((path.stem, "", "damaged"))
        rows += [(names.pop(node.public_key, "?"), str(node.id), node.status) for node in nodes]
        rows += [(name, "", "not registered") for name in names.values()]
        common.show_rows(("name", "node", "status"), sorted(rows))
        common.write_json(json_file, [dict(zip(("name", "node", "status"), row, strict=True)) for row in sorted(rows)])
