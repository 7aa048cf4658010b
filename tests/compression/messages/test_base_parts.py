"""Parts of a base: those of its files one after the other, refused where they are damaged or malformed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import safetensors_files
from fedpress.compression.messages import base_parts, orders
from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.messages.orders import MessageError


def made(folder: Path, *sizes: int) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.safetensors").write_bytes(bytes((number + i) % 256 for i in range(size)))
    return folder


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 400))
def test_the_parts_are_the_files(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int) -> None:
    folder = made(tmp_path_factory.mktemp("base") / "files", *sizes)
    base, whole, count = BaseSource(folder, length), b"", 0
    while True:
        part = base_parts.find(RecordDict({orders.BASE: base_parts.write(base.part(len(whole)))}))
        assert part is not None and part.offset == len(whole) and part.sha256 == base.sha256
        whole, count = whole + part.data, count + 1
        if part.is_last:
            break
    assert whole == b"".join(path.read_bytes() for path in sorted(folder.iterdir())) and count == base.parts
    assert base.sha256 == safetensors_files.sha256(folder)
    assert base.part(len(whole)).data == b"" and base.part(len(whole)).is_last
    assert base.part(len(whole) + 1).offset == 0


NAME, DIGEST = "a.safetensors", hashlib.sha256(b"abc").hexdigest()
FAULTS: dict[str, dict[str, Any]] = {
    "SHA-256 that it came with": {"data": b"abd"},
    "lacks its bytes or its place": {"data": "abc"},
    "or its place": {"offset": -1},
    "ends after 4 bytes, the base has 3": {"offset": 1},
    "name '../a'": {"files": json.dumps([["../a", 3, DIGEST]])},
    "name '.a'": {"files": json.dumps([[".a", 3, DIGEST]])},
    "size -3": {"files": json.dumps([[NAME, -3, DIGEST]])},
    "size 3.0": {"files": json.dumps([[NAME, 3.0, DIGEST]])},
    "non-hexadecimal": {"files": json.dumps([[NAME, 3, "x" * 64]])},
    "two of the same name": {"files": json.dumps([[NAME, 1, DIGEST], [NAME, 2, DIGEST]])},
    "no files": {"files": "[]"},
    "malformed": {"files": "{"},
    "list of the base's files": {"files": 3},
}


@pytest.mark.parametrize("expected", FAULTS)
def test_what_is_no_part_of_a_base_is_refused(expected: str) -> None:
    entries: dict[str, Any] = {
        "files": json.dumps([[NAME, 3, DIGEST]]),
        "offset": 0,
        "data": b"abc",
        "sha256": bytes.fromhex(DIGEST),
    }
    assert base_parts.find(RecordDict({orders.BASE: ConfigRecord({**entries})})) is not None
    with pytest.raises(MessageError, match=expected):
        base_parts.find(RecordDict({orders.BASE: ConfigRecord({**entries, **FAULTS[expected]})}))
    assert base_parts.find(RecordDict()) is None
