"""Files of a model's folder are found as Hugging Face writes them, and hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpress.compression import files
from fedpress.compression import safetensors_files as found
from fedpress.compression.safetensors_files import WeightsError


def shard(path: Path, name: str) -> Path:
    save_file({name: np.arange(3, dtype=np.float32)}, path)
    return path


def test_of_a_folder_the_index_comes_first_then_the_single_file_then_all(tmp_path: Path) -> None:
    shard(tmp_path / "b.safetensors", "b"), shard(tmp_path / "a.safetensors", "a")
    assert [file.name for file in found.files_of(tmp_path)] == ["a.safetensors", "b.safetensors"]
    shard(tmp_path / found.SINGLE, "c")
    assert [file.name for file in found.files_of(tmp_path)] == [found.SINGLE]
    (tmp_path / found.INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors", "x": "a.safetensors"}}))
    assert [file.name for file in found.files_of(tmp_path)] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{}", "is no index"),
        ("no json", "is no index"),
        ('{"weight_map": [1]}', "is no index"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "1 of the 1 files .* are missing: 'absent.safetensors'"),
        ('{"weight_map": {"a": "../absent.safetensors"}}', "outside its folder"),
    ],
)
def test_an_index_that_is_wrong_is_refused(index: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / found.INDEX).write_text(index)
    with pytest.raises(WeightsError, match=expected):
        found.files_of(tmp_path)


def test_a_folder_of_pickles_is_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no safetensors file$"):
        found.files_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(WeightsError, match="'pytorch_model.bin' may be pickles"):
        found.files_of(tmp_path)
    with pytest.raises(WeightsError, match="there is no file"):
        found.files_of(tmp_path / "absent")


def test_hashes_are_those_of_the_command_line(tmp_path: Path) -> None:
    one = shard(tmp_path / "a.safetensors", "a")
    assert found.sha256(one) == found.sha256(tmp_path) == hashlib.sha256(one.read_bytes()).hexdigest()
    shard(tmp_path / "b.safetensors", "b")
    listed = subprocess.run(
        "sha256sum *.safetensors | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.sha256(tmp_path) == listed.stdout.split()[0]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.safetensors", "a")
    before = found.sha256(path)
    monkeypatch.setattr(files, "open_regular", lambda *_: pytest.fail("it is read again"))
    assert found.sha256(path) == before
    monkeypatch.undo()
    shard(path, "other")
    os.utime(path, ns=(1, 1))
    assert found.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before
