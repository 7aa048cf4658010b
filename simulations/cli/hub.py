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
        Path | None, common.file_option("Admit only clients with a certificate of this CA, PEM.", "--client-ca")
    ] = None,
    tokens: Annotated[
        Path | None, common.file_option("Admit only clients with one of these tokens.", "--tokens")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Admit every client that can connect.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve without TLS.")] = False,
    downloads: Annotated[int, typer.Option(help="Concurrent downloads (256).", **common.COUNT)] = 256,
    downloads_each: Annotated[int, typer.Option(help="Concurrent downloads of one client (4).", **common.COUNT)] = 4,
    requests: Annotated[int, typer.Option(help="Requests a minute of one client (60).", **common.COUNT)] = 60,
    rate: Annotated[
        int | None, typer.Option(help="Bytes a second of one client. Default: no limit.", **common.COUNT)
    ] = None,
    stall: Annotated[
        float,
        typer.Option(**common.SECONDS, help="Seconds within which a client must take 64 KiB (120)."),
    ] = 120.0,
    grace: Annotated[
        float,
        typer.Option(
            metavar="S",
            show_default=False,
            callback=common.not_negative,
            help="Seconds that running downloads get at shutdown (10).",
        ),
    ] = 10.0,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus there, over plain HTTP.")
    ] = None,
) -> None:
    """Serve students' bundles to devices that only download them.

    STORE is a folder of published bundles, such as RUN/bundles. A student that is
    published while the hub runs is served within a second.

    Clients are admitted with a token (--tokens; `fedpress hub-token` makes them), with a
    certificate (--client-ca), with both where both options are given, or without either
    (--public). The files of tokens, certificate and key are read again when they change.
    Limits apply to each client: a client is a token, else the name in a certificate,
    else an address. SIGTERM and Ctrl-C stop the hub.

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
        settings = hubs.HubSettings(
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
        typer.Option(metavar="FILE", show_default=False, help="The hub's file of tokens, created if absent (tokens)."),
    ] = Path("tokens"),
) -> None:
    """Make a token for `fedpress hub --tokens`, and print it once.

    NAME identifies the client in the hub's log. The file stores the name and the
    token's SHA-256, never the token. A running hub reads the file again at once. To
    revoke a token, delete its line.

    \b
    Example:
      fedpress hub-token kitchen-sensor > kitchen-sensor.token
    """
    with common.clear_errors("hub"):
        from fedpress.server.hub import admission

        typer.echo(admission.add_token(tokens, name))
        typer.echo(f"its hash is in {tokens} as {name}; the token itself is stored nowhere", err=True)
