"""Bundles that hold what was trained and name the base of the rest by its SHA-256; without torch.

A fine-tuned model is its base (pretrained weights that a device may have already) and what was trained: adapters, a
head. Such a bundle holds the latter alone. Its manifest names the base's files by their hash, the tensors that are
taken from them, and the hash of the whole: what `assembled` returns is to the bit what the server evaluated, or there
is an error.

The ONNX graph of such a bundle, in float32, holds neither: `onnx_weights` leaves out what is in one or the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from fedpress.compression import files, safetensors_files
from fedpress.compression.models.bundles.errors import DoesNotFit, NoBase
from fedpress.compression.models.bundles.reader import Bundle
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.safetensors_files import few

FOLDER: Final = "bases"
"""Folder beside bundles with what they build on: a file or folder for each base, or a link to one, of any name."""
_DTYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1",
    "BOOL": "?", "BF16": "<u2",
}  # fmt: skip
"""Numpy's dtypes of those in safetensors files; bfloat16 as its bits."""

Arrays = Mapping[str, NDArray[Any]]


class BaseFiles(NamedTuple):
    """Pretrained weights, and the hash that they must have.

    Attributes:
        path: A safetensors file, or a folder of them (`safetensors_files.files_of`).
        sha256: Their SHA-256, in hexadecimal.
    """

    path: Path
    sha256: str


def digest(arrays: Arrays) -> str:
    """Return the SHA-256 of a model's tensors: of names, dtypes, shapes and values, in the order of the names.

    Args:
        arrays: Tensors by name.
    """
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{len(name)} {name} {array.dtype.name} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return found.hexdigest()


def read(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return tensors of safetensors files by name; floats as float32, as bundles hold them.

    Args:
        path: A file, or a folder of them.
        names: Names of the tensors.

    Raises:
        WeightsError: The files are absent or damaged.
        NoBase: They lack one of the tensors.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for file in safetensors_files.files_of(path):
        try:
            with files.open_regular(file) as opened:
                parts = safetensors.deserialize(opened.read())  # type: ignore[no-untyped-call]
        except OSError as error:
            raise safetensors_files.WeightsError(f"cannot read {file}: {error.strerror or error}") from None
        except safetensors.SafetensorError as error:
            raise safetensors_files.WeightsError(f"{file} is no safetensors file, or damaged: {error}") from None
        for name, part in parts:
            if name in names:
                arrays[name] = _array(name, part)
    if missing := sorted(set(names) - arrays.keys()):
        raise NoBase(f"{path} lacks {len(missing)} of the {len(names)} tensors of the base: {few(missing)}")
    return arrays


def _array(name: str, part: Mapping[str, Any]) -> NDArray[Any]:
    if part["dtype"] not in _DTYPES:
        raise safetensors_files.WeightsError(
            f"{name!r} is of dtype {part['dtype']}, expected one of {', '.join(_DTYPES)}"
        )
    array = np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])
    if part["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def find(wanted: str, *places: Path | None) -> Path:
    """Return the first path with the files of a base.

    Args:
        wanted: SHA-256 of the files.
        places: Safetensors files, folders of them, or folders of such, in the order in which they are looked at; None
            and what is not there: left out.

    Raises:
        NoBase: None of them has that hash; the text says which ones were found.
    """
    present = [place for place in places if place is not None and place.exists()]
    seen = []
    for place in present:
        for path in [place, *(sorted(place.iterdir()) if place.is_dir() else [])]:
            try:
                sha256 = safetensors_files.sha256(path)
            except (safetensors_files.WeightsError, OSError):
                continue  # a folder of bases, or another file
            if sha256 == wanted:
                return path
            seen.append(f"{path} (SHA-256 {sha256})")
    if seen:
        others = f"; found {', '.join(seen[:3])}: another model, another release of it, or changed"
    else:
        absent = [str(place) for place in places if place is not None and not place.exists()]
        others = f"; there is no {absent[0]}" if absent else "; no place was given, or no weights are there"
    raise NoBase(
        f"the bundle is what was trained alone, and builds on pretrained weights with SHA-256 {wanted}, as `sha256sum"
        f" model.safetensors` shows it{others}. Name the file or folder with --base, or link it into {FOLDER}/ beside"
        " the bundle"
    )


def with_base(bundle: Bundle, *places: Path | None) -> Bundle:
    """Return a bundle as `assembled` does, with the base where it is found; one without a base as it is.

    Args:
        bundle: Opened bundle.
        places: As of `find`.

    Raises:
        BundleError: As of `find` and `assembled`.
    """
    base = bundle.manifest.base
    return bundle if base is None else assembled(bundle, find(base.sha256, *places))


def assembled(bundle: Bundle, path: Path) -> Bundle:
    """Return a bundle with the tensors of its base, as if they had been in the file.

    Law: the tensors are to the bit those that the file was written of. A bundle without a base is returned as it is.

    Args:
        bundle: Opened bundle.
        path: Files of the base.

    Raises:
        NoBase: The files are not the base, or lack some of its tensors.
        DoesNotFit: Put together, the tensors are not those that the manifest announces.
    """
    base = bundle.manifest.base
    if base is None:
        return bundle
    try:
        find(base.sha256, path)
        arrays = read(path, set(base.tensors.values()))
    except safetensors_files.WeightsError as error:
        raise NoBase(str(error)) from None
    given = {name: arrays[source] for name, source in base.tensors.items()}
    whole = {**quantized_tensor.dequantize(bundle.weights), **given}
    if (found := digest(whole)) != base.whole:
        raise DoesNotFit(
            f"put together, bundle and base have SHA-256 {found}, the manifest says {base.whole}: made by another"
            " version of fedpress?"
        )
    manifest = bundle.manifest.model_copy(
        update={
            "shapes": {**bundle.manifest.shapes, **{name: array.shape for name, array in given.items()}},
            "schemes": {**bundle.manifest.schemes, **{name: array.dtype.name for name, array in given.items()}},
        }
    )
    return bundle._replace(
        manifest=manifest,
        weights={**bundle.weights, **given},
    )
