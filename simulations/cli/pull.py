"""`fedpress pull` and `run`: download of students to a device, and inference with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpress.simulations.cli import common


def _given(value: Any) -> Any:
    if value in ("", Path()):
        raise typer.BadParameter("this option is required")
    return value


NEEDED: dict[str, Any] = {"show_default": False, "callback": _given}
LargestMib = Annotated[
    int,
    typer.Option(
        "--largest-mib",
        **common.COUNT,
        help="Largest file that this device takes, and largest model decoded from it, in MiB (1024).",
    ),
]
VerifyKey = Annotated[
    Path | None, common.file_option("Ed25519 public key that must verify the bundle's signature, PEM.", "--verify-key")
]
Base = Annotated[
    Path | None,
    common.file_option(
        "Pretrained weights that the student builds on: a safetensors file, or a folder of them. Default: what is in"
        " the folder bases beside the bundle.",
        "--base",
    ),
]


def pull(
    hub_address: Annotated[
        str, typer.Option("--hub", metavar="HOST:PORT", help="Address of the hub (required).", **NEEDED)
    ] = "",
    tier: Annotated[
        str, typer.Option(metavar="TIER", help="Tier of this device, such as phone (required).", **NEEDED)
    ] = "",
    out: Annotated[
        Path, typer.Option(metavar="DIR", show_default=False, help="Folder for TIER.fpb. Default: the current one.")
    ] = Path("."),
    ca: Annotated[
        Path | None,
        common.file_option("Authority of the hub's certificate, PEM. Default: the system's.", "--ca"),
    ] = None,
    token_file: Annotated[
        Path | None,
        common.file_option("File with this device's token. Default: variable FEDPRESS_TOKEN.", "--token-file"),
    ] = None,
    client_certificate: Annotated[
        Path | None, common.file_option("This device's certificate, PEM.", "--client-certificate")
    ] = None,
    client_key: Annotated[Path | None, common.file_option("Its private key, PEM.", "--client-key")] = None,
    verify_key: VerifyKey = None,
    base: Base = None,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Accept a version older than the present one.")
    ] = False,
    watch: Annotated[
        float | None, typer.Option(**common.SECONDS, help="Keep running, and check for a new version every S seconds.")
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            callback=common.not_negative,
            help="Failed attempts in a row, without a byte, before giving up (8).",
        ),
    ] = 8,
    stall: Annotated[
        float,
        typer.Option(**common.SECONDS, help="Seconds without a byte after which an attempt ends (120)."),
    ] = 120.0,
    largest_mib: LargestMib = 1024,
    insecure: Annotated[bool, typer.Option("--insecure", help="Connect without TLS.")] = False,
) -> None:
    """Download a tier's newest student, unless it is there already.

    The file replaces DIR/TIER.fpb once it is verified; until then the old one stays. An
    interrupted download continues where it stopped, in the next attempt or the next
    pull. Needs neither torch nor Flower: the extra `download` is enough.

    A student that is an adapter names the pretrained weights that it builds on by their
    SHA-256. Name yours with --base the first time: both are put together and compared with
    the hash of the whole, and DIR/bases gets a link to them.

    \b
    Exit codes:
      3  hub unreachable, or the link keeps breaking   7  damaged, or not signed by the key
      4  a certificate is not trusted                  8  the disk is full, or not writable
      5  no token, or an unknown one                   9  older than the present version
      6  no such tier; the existing ones are named    10  the base of an adapter is not here
      2  any other error
    \b
    Examples:
      fedpress pull --hub 127.0.0.1:9443 --tier phone --insecure
      fedpress pull --hub hub.example.org:9443 --tier phone --out students \\
          --ca ca.pem --token-file phone.token --verify-key maker.pem --watch 3600
    """
    with common.clear_errors("download"):
        os.environ.setdefault(*common.SILENT)
        import random
        import time

        from rich.console import Console

        from fedpress.client.download import pull as pulls
        from fedpress.compression.models.bundles import signing
        from fedpress.simulations.cli import pull_display

        token = pulls.read_token(token_file) if token_file else os.environ.get("FEDPRESS_TOKEN") or None
        hub = pulls.HubConnection(hub_address, ca, token, client_certificate, client_key, insecure, stall)
        public_key = signing.read_public(verify_key) if verify_key else None
        console = Console(stderr=True)
        while True:
            try:
                with pull_display.PullDisplay(console) as display:
                    pulled = pulls.pull(
                        hub,
                        tier,
                        out,
                        public_key=public_key,
                        allow_older=allow_older,
                        retries=retries,
                        limit=largest_mib << 20,
                        base=base,
                        on_progress=display.on_progress,
                        on_wait=display.on_wait,
                    )
                typer.echo(pull_display.summary(pulled))
            except pulls.PullError as error:
                if watch is None:
                    raise
                typer.echo(f"error: {error}", err=True)
            if watch is None:
                break
            time.sleep(watch * random.uniform(0.9, 1.1))  # a fleet must not come all at once


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", **common.DOCUMENTED)],
    inputs: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="Inputs, .npy, .npz or .json (required).", **NEEDED)
    ] = Path(),
    out: Annotated[Path | None, common.file_option("Also write the outputs to FILE, .npy.", "--out")] = None,
    verify_key: VerifyKey = None,
    base: Base = None,
    largest_mib: LargestMib = 1024,
    json_file: common.JsonOption = None,
) -> None:
    """Run a downloaded student on a file of inputs.

    BUNDLE is a file from `fedpress pull`, of a scenario with students.quantize.onnx: true.
    The inputs are an .npy file of shape (N, ...) or (...), preprocessed like the training
    data, or an .npz file with one array, or with one called "input". A student that takes
    several inputs by name (ids, a mask) gets them from an .npz file with arrays of these
    names, or from a .json file such as {"input_ids": [[5, 7]], "attention_mask": [[1, 1]]}.
    The model runs in ONNX Runtime. Prints the class of each input; --out keeps the outputs,
    float32 (N, ...).

    Needs neither torch nor Flower: the extras `download` and `onnx` are enough. Nothing of the
    bundle is executed but the ONNX graph.

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
        public_key = signing.read_public(verify_key) if verify_key else None
        answer = infer.answer(bundle, inputs, public_key, largest_mib << 20, base)
        if answer.classes is None and out is None:
            common.leave(
                f"error: outputs of shape {answer.outputs.shape[1:]} are no classes: keep them with --out FILE.npy", 2
            )
        if answer.classes is not None:
            for number, row in enumerate(answer.classes):
                typer.echo(f"{number}\t{' '.join(map(str, np.atleast_1d(row)))}")
        if out is not None:
            import io

            from fedpress.compression import files

            file = io.BytesIO()
            np.save(file, answer.outputs)
            files.write_atomically(out, file.getvalue())
            typer.echo(f"outputs {answer.outputs.shape}: {out}", err=True)
        classes = None if answer.classes is None else answer.classes.tolist()
        common.write_json(
            json_file, {"tier": answer.manifest.tier, "version": answer.manifest.version, "classes": classes}
        )
