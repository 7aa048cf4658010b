"""The commands of the model hub: `hub`, `hub-token`, `pull`, `run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpress.simulations.cli import common

SILENT = ("GRPC_VERBOSITY", "NONE")
"""gRPC's own lines on standard error, one for each failed handshake; a variable that is set already stays."""


def _given(value: Any) -> Any:
    if value in ("", Path()):
        raise typer.BadParameter("it is needed, and was not given")
    return value


def _at_least_one(value: float | None) -> float | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"got {value:g}, expected at least 1")
    return value


def _not_negative(value: float) -> float:
    if value < 0:
        raise typer.BadParameter(f"got {value:g}, expected 0 or more")
    return value


# Not typer's own way: in a help text it would put a backslash before the bracket of its [required] and [x>=1].
NEEDED: dict[str, Any] = {"show_default": False, "callback": _given}
SECONDS: dict[str, Any] = {"metavar": "S", "show_default": False, "callback": _at_least_one}


def _file(help_text: str, *names: str, metavar: str = "FILE") -> Any:
    return typer.Option(*names, metavar=metavar, help=help_text)


VerifyKey = Annotated[Path | None, _file("Ed25519 public key of who must have signed the bundle.", "--verify-key")]


def add_to(main: typer.Typer) -> None:
    """Register the commands."""
    main.command("hub")(hub)
    main.command("hub-token")(hub_token)
    main.command("pull")(pull)
    main.command("run")(run)


def hub(
    store: Annotated[Path, typer.Argument(metavar="STORE", **common.DOCUMENTED)],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default=False, help="Default: 127.0.0.1:9443; port 0: a free one.")
    ] = "127.0.0.1:9443",
    certificate: Annotated[Path | None, _file("The hub's certificate with its chain, PEM.", "--certificate")] = None,
    key: Annotated[Path | None, _file("Its private key, PEM.", "--key")] = None,
    client_ca: Annotated[Path | None, _file("Only clients with a certificate of this CA, PEM.", "--client-ca")] = None,
    tokens: Annotated[Path | None, _file("Only clients with one of these tokens.", "--tokens")] = None,
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
        typer.Option(**SECONDS, help="A client must take 64 KiB in so many seconds (120)."),
    ] = 120.0,
    grace: Annotated[
        float,
        typer.Option(
            metavar="S",
            show_default=False,
            callback=_not_negative,
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
        os.environ.setdefault(*SILENT)
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


def pull(
    hub_address: Annotated[
        str, typer.Option("--hub", metavar="HOST:PORT", help="Where the hub listens.", **NEEDED)
    ] = "",
    tier: Annotated[str, typer.Option(metavar="TIER", help="The class of devices that this one is of.", **NEEDED)] = "",
    out: Annotated[
        Path, typer.Option(metavar="DIR", show_default=False, help="Where TIER.fpb goes. Default: here.")
    ] = Path("."),
    ca: Annotated[
        Path | None, _file("Who signed the hub's certificate, PEM. Default: the public authorities.", "--ca")
    ] = None,
    token_file: Annotated[
        Path | None, _file("Holds this device's token. Or FEDPRESS_TOKEN is it.", "--token-file")
    ] = None,
    client_certificate: Annotated[Path | None, _file("This device's certificate, PEM.", "--client-certificate")] = None,
    client_key: Annotated[Path | None, _file("Its private key, PEM.", "--client-key")] = None,
    verify_key: VerifyKey = None,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="A version below the one that is here may replace it.")
    ] = False,
    watch: Annotated[float | None, typer.Option(**SECONDS, help="Go on, and look again every so many seconds.")] = None,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            callback=_not_negative,
            help="Attempts in a row without a byte, after the first (8).",
        ),
    ] = 8,
    stall: Annotated[
        float,
        typer.Option(**SECONDS, help="Seconds without a byte that end an attempt (120)."),
    ] = 120.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Without TLS.")] = False,
) -> None:
    """Download a tier's newest student, or say that it is here.

    It replaces DIR/TIER.fpb once it is verified; until then the old one stays. A download
    that breaks off goes on where it was, in the next attempt or the next pull.
    Needs neither torch nor Flower: pip install 'fedpress[download]'.

    \b
    Exit codes:
      3  no hub there, or the link keeps breaking   7  damaged, or not signed by the key
      4  a certificate is not trusted               8  the disk is full, or not writable
      5  no token, or not a known one               9  older than what is here
      6  no such tier; those that exist are named   2  anything else
    \b
    Examples:
      fedpress pull --hub 127.0.0.1:9443 --tier phone --insecure
      fedpress pull --hub hub.example.org:9443 --tier phone --out students \\
          --ca ca.pem --token-file phone.token --verify-key maker.pem --watch 3600
    """
    with common.clear_errors("download"):
        os.environ.setdefault(*SILENT)
        import random
        import time

        from rich.console import Console

        from fedpress.client.download import pull as pulls
        from fedpress.compression.models.bundles import signing
        from fedpress.simulations.cli import pull_display

        token = pulls.read_token(token_file) if token_file else os.environ.get("FEDPRESS_TOKEN") or None
        there = pulls.Hub(hub_address, ca, token, client_certificate, client_key, insecure, stall)
        public_key = signing.read_public(verify_key) if verify_key else None
        console = Console(stderr=True)
        while True:
            try:
                with pull_display.Display(console) as display:
                    found = pulls.pull(
                        there,
                        tier,
                        out,
                        public_key=public_key,
                        allow_older=allow_older,
                        retries=retries,
                        on_progress=display.on_progress,
                        on_wait=display.on_wait,
                    )
                typer.echo(pull_display.summary(found))
            except pulls.PullError as error:
                if watch is None:
                    raise
                typer.echo(f"error: {error}", err=True)
            if watch is None:
                break
            time.sleep(watch * random.uniform(0.9, 1.1))  # a fleet must not come all at once


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", **common.DOCUMENTED)],
    inputs: Annotated[Path, typer.Option("--input", metavar="FILE", help="Inputs, .npy or .npz.", **NEEDED)] = Path(),
    out: Annotated[Path | None, _file("Write the student's outputs there, .npy.", "--out")] = None,
    verify_key: VerifyKey = None,
    json_file: common.JsonOption = None,
) -> None:
    """Run a downloaded student on a file of inputs.

    BUNDLE is what fedpress pull leaves, of a scenario with students.quantize.onnx: true.
    The inputs are an .npy file of shape (N, ...) or (...), prepared as the training data
    were, or an .npz file with one array, or with one called "input". ONNX Runtime
    answers. Prints the class of each input; --out keeps the numbers behind it, float32 (N, ...).

    Needs neither torch nor Flower: pip install 'fedpress[download,onnx]'. Of the bundle
    nothing is executed but the ONNX graph.

    \b
    Example:
      fedpress run phone.fpb --input images.npy --out answers.npy
    """
    with common.clear_errors("download,onnx", json_file):
        import numpy as np

        from fedpress.client.download import infer
        from fedpress.compression.models.bundles import signing

        if out is not None and (out.suffix != ".npy" or not out.absolute().parent.is_dir()):
            common.leave(f"error: --out {out}: expected a file .npy in a folder that exists", 2)
        found = infer.answer(bundle, inputs, signing.read_public(verify_key) if verify_key else None)
        if found.classes is None and out is None:
            common.leave(
                f"error: answers of shape {found.outputs.shape[1:]} are no classes: keep them with --out FILE.npy", 2
            )
        if found.classes is not None:
            for number, row in enumerate(found.classes):
                typer.echo(f"{number}\t{' '.join(map(str, np.atleast_1d(row)))}")
        if out is not None:
            import io

            from fedpress.compression import files

            file = io.BytesIO()
            np.save(file, found.outputs)
            files.write_atomically(out, file.getvalue())
            typer.echo(f"outputs {found.outputs.shape}: {out}", err=True)
        classes = None if found.classes is None else found.classes.tolist()
        common.write_json(
            json_file, {"tier": found.manifest.tier, "version": found.manifest.version, "classes": classes}
        )
