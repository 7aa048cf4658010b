"""`fedpress hub` and `hub-token`: the server that devices download students from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedpress.simulations.cli import common


def hub(
    store: Annotated[Path, typer.Argument(metavar="STORE", **common.DOCUMENTED)],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=False, help="Default: 127.0.0.1:9443; port 0: a free one.")
    ] = "127.0.0.1:9443",
    certificate: Annotated[
        Path | None, common.file_option("The hub's certificate with its chain, PEM.", "--certificate")
    ] = None,
    key: Annotated[Path | None, common.file_option("Its private key, PEM.", "--key")] = None,
    client_ca: Annotated[
        Path | None, common.file_option("Only clients with a certificate of this CA, PEM.", "--client-ca")
    ] = None,
    tokens: Annotated[Path | None, common.file_option("Only clients with one of these tokens.", "--tokens")] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody who reaches the hub may download.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Without TLS.")] = False,
    downloads: Annotated[int, typer.Option(help="Downloads at once (256).", **common.COUNT)] = 256,
    downloads_each: Annotated[int, typer.Option(help="Of one client (4).", **common.COUNT)] = 4,
    requests: Annotated[int, typer.Option(help="Requests a minute of one client (60).", **common.COUNT)] = 60,
    rate: Annotated[
        int | None, typer.Option(help="Bytes a second of one client. Default: no limit.", **common.COUNT)
    ] = None,
    stall: Annotated[
        float,
        typer.Option(**common.SECONDS, help="A client must take 64 KiB in so many seconds (120)."),
    ] = 120.0,
    grace: Annotated[
        float,
        typer.Option(
            metavar="S",
            show_default=False,
            callback=common.not_negative,
            help="What downloads under way get at the end (10).",
        ),
    ] = 10.0,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Figures for Prometheus, by HTTP, for whoever reaches that.")
    ] = None,
) -> None:
    """Serve students' bundles to devices that only download them.

    STORE is a folder of published bundles, such as RUN/bundles; a student that is
    published while the hub runs is served from the next second on.

    Who may download: those with a token (--tokens; fedpress hub-token makes them), with
    a certificate of a CA (--client-ca), with both where both are given, or everybody
    (--public). Tokens are read again when their file changes, and so are the
    certificate and its key. A client is a token, or the name in a certificate, or
    else an address; limits count for each. SIGTERM and Ctrl-C stop the hub.

    \b
    Examples:
      fedpress hub runs/digits/bundles --insecure
      fedpress hub students --listen 0.0.0.0:9443 --certificate hub.pem --key hub.key \\
          --tokens tokens
    """
    with common.clear_errors("hub"):
        os.environ.setdefault(*common.SILENT)
        import asyncio
        import logging

        from fedpress.server.hub import service as hubs

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
        settings = hubs.Settings(
            store=store,
            listen=listen,
            certificate=certificate,
            key=key,
            client_ca=client_ca,
            tokens=tokens,
            public=public,
            insecure=insecure,
            downloads=downloads,
            downloads_each=downloads_each,
            requests=requests,
            rate=rate,
            stall=stall,
            grace=grace,
            metrics=metrics,
        )
        asyncio.run(hubs.serve(settings, lambda line: print(line, flush=True)))


def hub_token(
    name: Annotated[str, typer.Argument(metavar="NAME", **common.DOCUMENTED)],
    tokens: Annotated[
        Path,
        typer.Option(
            metavar="FILE", show_default=False, help="The hub's file of tokens; made if it is absent (tokens)."
        ),
    ] = Path("tokens"),
) -> None:
    """Make a token for `fedpress hub --tokens`, and print it once.

    NAME says whose it is, in the log. The file gets the name and the token's SHA-256,
    so that nobody can read a token out of it; a hub that runs knows it at once. To
    revoke one, delete its line.

    \b
    Example:
      fedpress hub-token kitchen-sensor > kitchen-sensor.token
    """
    with common.clear_errors("hub"):
        from fedpress.server.hub import admission

        typer.echo(admission.add_token(tokens, name))
        typer.echo(f"its hash is in {tokens} as {name}; the token itself is stored nowhere", err=True)
