"""`fedpress keys`: certificates and node keys."""

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
