"""Safetensors files of a model: one, or a folder of them as Hugging Face's libraries write it; and their SHA-256."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from fedpress.compression import files
from fedpress.compression.errors import FedpressError

INDEX = "model.safetensors.index.json"
"""File of a folder that names the file of each tensor, in its entry `weight_map`."""
SINGLE = "model.safetensors"
"""The one file of a folder without an index."""

_SHOWN = 5
"""Names that a text lists."""


class WeightsError(FedpressError, ValueError):
    """Weights cannot be used; the text says what was found, and what is expected."""


def files_of(path: Path) -> list[Path]:
    """Return the safetensors files that a path stands for, in the order of their names.

    Args:
        path: A file; or a folder with an index and its shards, with `model.safetensors`, or with other safetensors
            files.

    Raises:
        WeightsError: There are none, or one that the index names is missing.
    """
    if not path.exists():
        raise WeightsError(f"there is no file {path}")
    if not path.is_dir():
        return [path]
    if (index := path / INDEX).is_file():
        try:
            named = sorted({str(name) for name in json.loads(files.read_text(index))["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{index} is no index of safetensors files: {error!r}") from None
        if outside := [name for name in named if Path(name).name != name]:
            raise WeightsError(f"{index} names files outside its folder: {few(outside)}")
        if missing := [name for name in named if not (path / name).is_file()]:
            raise WeightsError(
                f"{path}: {len(missing)} of the {len(named)} files that {INDEX} names are missing: {few(missing)}"
            )
        return [path / name for name in named]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if found := sorted(path.glob("*.safetensors")):
        return found
    pickles = sorted(file.name for file in (*path.glob("*.bin"), *path.glob("*.pt")))
    hint = f"; {few(pickles)} may be pickles, which can run any code and are not loaded" if pickles else ""
    raise WeightsError(f"the folder {path} holds no safetensors file{hint}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; of a folder's several files, that of their list.

    `sha256sum model.safetensors` gives the same for one file, and `sha256sum *.safetensors | sha256sum` in the folder
    for several. Each file is read once in a process, unless its size, time or inode changes.

    Args:
        path: As of `files_of`.

    Raises:
        WeightsError: There is no such file, or it cannot be read.
    """
    found = files_of(path)
    try:
        digests = [_hash_of(file) for file in found]
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from None
    return sha256_of_list([(file.name, digest) for file, digest in zip(found, digests, strict=True)])


def sha256_of_list(named: list[tuple[str, str]]) -> str:
    """Return the SHA-256 of a model by those of its files, as `sha256` does.

    Args:
        named: Name and SHA-256 of each file, one at least.
    """
    if len(named) == 1:
        return named[0][1]
    lines = (f"{digest}  {name}\n" for name, digest in named)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_of(file: Path) -> str:
    status = file.stat()
    return _hash_once(file.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_once(file: Path, inode: int, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with files.open_regular(file) as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def few(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
