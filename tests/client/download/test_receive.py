"""A bundle on the client: verified before it is kept, whole or not there, and usable."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.client.download import receive
from fedpress.compression.models.bundles import errors, writer
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.task import Splits, Task


class Line(Task):
    name = "line"

    def model(self) -> nn.Module:
        return nn.Linear(2, 3)

    def data(self) -> Splits:
        raise AssertionError("a download needs no data")


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Line().model()


def made(seed: int = 0, version: int = 7) -> bytes:
    model = student(seed)
    weights = quantize.quantize(model)
    return writer.save(
        model,
        weights,
        torch.zeros(1, 2),
        task="line",
        tier="phone",
        version=version,
        metrics={"validation_accuracy": 1.0},
    )


DATA = made()
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_a_verified_bundle_is_kept_and_answers_like_the_student(tmp_path: Path) -> None:
    path = receive.receive(DATA, SHA256.upper(), tmp_path / "new" / "folder")
    assert path.name == "phone-0000000007.fpb" and path.read_bytes() == DATA
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    inputs = torch.randn(4, 2)
    rebuilt = receive.load(path, Line())
    assert torch.equal(rebuilt(inputs), quantize.quantized_copy(student(0))(inputs))


@given(position=st.integers(0, len(DATA) * 8 - 1))
def test_a_flipped_bit_on_the_way_is_found_and_nothing_is_written(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    damaged = bytearray(DATA)
    damaged[position // 8] ^= 1 << position % 8
    folder = tmp_path_factory.getbasetemp() / "never"
    with pytest.raises(receive.NotWhatWasOffered, match="download it again"):
        receive.receive(bytes(damaged), SHA256, folder)
    assert not folder.exists()


def test_a_server_that_offers_a_broken_bundle_is_refused(tmp_path: Path) -> None:
    broken = DATA[:-1]
    with pytest.raises(errors.TruncatedBundle):
        receive.receive(broken, hashlib.sha256(broken).hexdigest(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bit_that_flips_on_the_disk_is_found(tmp_path: Path) -> None:
    path = receive.receive(DATA, SHA256, tmp_path)
    damaged = bytearray(DATA)
    damaged[-20] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(errors.BundleChecksumMismatch):
        receive.load(path, Line())


def test_a_failed_write_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = receive.receive(DATA, SHA256, tmp_path)
    other = made(seed=1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        receive.receive(other, hashlib.sha256(other).hexdigest(), tmp_path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == DATA
