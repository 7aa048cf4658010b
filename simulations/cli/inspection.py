"""`fedpress inspect`: what a payload, a bundle or a run folder holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.filesize import decimal as size

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.wire import payloads
from fedpress.simulations.report import tables
from fedpress.simulations.results.run_folder import RunFolder

if TYPE_CHECKING:
    from fedpress.compression.models.bundles.manifest import Base
    from fedpress.compression.models.bundles.reader import Bundle


MOST_BYTES = 1 << 30
"""Largest file that is inspected: more than a bundle may have, or an update of 2^28 entries."""


class InspectionError(FedpressError, ValueError):
    """The path is missing, or neither a payload nor a bundle nor a run folder."""


class Inspection(NamedTuple):
    """Contents of a payload, a bundle or a run folder.

    Attributes:
        kind: "payload", "bundle" or "run".
        facts: Name and value of each line of text.
        data: The same as plain data, for JSON.
        columns: Heads of the table of students or tensors; empty: there is no table.
        rows: Cells of the table.
    """

    kind: str
    facts: list[tuple[str, str]]
    data: dict[str, Any]
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()


def inspect(path: Path, key: Path | None = None) -> Inspection:
    """Read and verify a payload, a bundle or a run folder.

    Args:
        path: File or folder.
        key: Ed25519 public key in PEM that must verify the bundle's signature.

    Raises:
        InspectionError: There is no such file, or it is something else.
        FedpressError: It is damaged: each fault has its own class, see `fedpress.compression.errors`.
    """
    if path.is_dir() or path.name == "results.json":
        if key:
            raise InspectionError(f"{path} is a run; --key is for one of the bundles in it")
        return _run(path if path.is_dir() else path.parent)
    try:
        data = files.read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        raise InspectionError(f"there is no file or folder {path}") from None
    except OSError as error:
        raise InspectionError(f"cannot read {path}: {error.strerror or error}") from None
    if data.startswith(payloads.MAGIC):
        if key:
            raise InspectionError(f"{path} is a payload, which carries no signature; leave out --key")
        return _payload(data)
    from fedpress.compression.models.bundles import container, reader, signing

    if data.startswith(container.MAGIC):
        public = signing.read_public(key) if key else None
        return _bundle(
            reader.open_bundle(data, public, MOST_BYTES),
            f"by {key}" if key else "present, not verified; --key verifies it",
        )
    raise InspectionError(
        f"{path} is neither a payload nor a bundle nor a run folder: it begins with {data[:8]!r}, a payload with"
        f" {payloads.MAGIC!r}, a bundle with {container.MAGIC!r}"
    )


def _payload(data: bytes) -> Inspection:
    header = payloads.inspect(data)
    entries, count = header["size"], header["count"]
    facts = [
        ("wire version", str(header["version"])),
        ("entries sent", f"{count:,} of {entries:,} ({count / entries if entries else 0:.3%})"),
        ("values", header["values"]),
        ("positions", header["positions"]),
        ("layout", header["fingerprint"]),
        ("header", size(header["header_bytes"])),
        ("positions", _each(header["position_bytes"], count)),
        ("values", _each(header["value_bytes"], count)),
        ("in all", f"{size(len(data))}, {4 * entries / len(data):.1f}x less than float32"),
    ]
    return Inspection("payload", facts, header)


def _each(length: int, count: int) -> str:
    return size(length) + (f" ({8 * length / count:.2f} bits an entry)" if count else "")


def _run(path: Path) -> Inspection:
    results = RunFolder.open(path).load_results()
    return Inspection(
        "run",
        tables.run_facts(results),
        results.model_dump(mode="json"),
        *tables.student_table(results),
    )


def _bundle(opened: Bundle, signature: str) -> Inspection:
    manifest = opened.manifest
    facts = [
        ("task", manifest.task),
        ("tier", manifest.tier),
        ("version", str(manifest.version)),
        ("parameters", f"{manifest.parameters:,}"),
        ("size", size(opened.size)),
        ("weights", _weights(opened)),
        *([("onnx", f"{size(len(opened.onnx))}, `fedpress run` puts the weights in")] if opened.onnx else []),
        *([("architecture", manifest.architecture)] if manifest.architecture else []),
        *([("base", _base(manifest.base))] if manifest.base else []),
        ("sha256", opened.sha256),
        ("signature", signature if opened.signed else "none"),
        ("format", str(opened.format)),
        ("checked", "whole and undamaged"),
        *((name.replace("_", " "), f"{value:.4g}") for name, value in manifest.metrics.items()),
    ]
    rows = [
        (name, "x".join(map(str, manifest.shapes[name])), scheme, opened.forms[name])
        for name, scheme in manifest.schemes.items()
    ]
    data = {
        "sha256": opened.sha256,
        "size": opened.size,
        "format": opened.format,
        "signed": opened.signed,
        "onnx_bytes": len(opened.onnx or b""),
        "weights_bytes": opened.weights_bytes,
        "forms": opened.forms,
        **manifest.model_dump(mode="json"),
    }
    return Inspection("bundle", facts, data, ("tensor", "shape", "numbers", "form"), rows)


def _base(base: Base) -> str:
    return f"{len(base.tensors):,} tensors more, of files with SHA-256 {base.sha256}"


def _weights(opened: Bundle) -> str:
    count = sum(math.prod(shape) for shape in opened.manifest.shapes.values())
    return _each(opened.weights_bytes, count).replace("an entry", "a number")
