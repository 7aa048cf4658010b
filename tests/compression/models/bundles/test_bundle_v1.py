"""Version 1 of the download file is still read, and its faults are still told apart."""

import hashlib
import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from fedpress.compression.models.bundles import bundle_v1, container, errors, writer
from fedpress.compression.models.quantization.quantized_tensor import Quantized, restore
from fedpress.compression.models.task import Splits, Task

GOLDEN = bytes.fromhex((Path(__file__).parents[1] / "golden" / "linear-1.hex").read_text())
START = 49
_, _, MANIFEST_BYTES, CODED_BYTES, PLAIN_BYTES = struct.unpack_from("<4sBIII", GOLDEN)
MANIFEST = zlib.decompress(GOLDEN[START : START + MANIFEST_BYTES])
WEIGHTS = zlib.decompress(GOLDEN[START + MANIFEST_BYTES :])


class Line(Task):
    """Two numbers in, three out."""

    name = "line"

    def model(self) -> nn.Module:
        return nn.Linear(2, 3)

    def data(self) -> Splits:
        raise AssertionError("a bundle is rebuilt without data")


def forged(manifest: bytes = MANIFEST, weights: bytes = WEIGHTS, plain_bytes: int | None = None) -> bytes:
    """A file whose checksums are right, whatever it carries; both parts are before zlib."""
    return assembled(zlib.compress(manifest), zlib.compress(weights), plain_bytes or len(weights))


def assembled(packed: bytes, coded: bytes, plain_bytes: int) -> bytes:
    head = bundle_v1.HEADER.pack(container.MAGIC, 1, len(packed), len(coded), plain_bytes)
    return head + hashlib.sha256(head + packed + coded).digest() + packed + coded


def manifest(**changes: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST) | changes).encode()


def with_weights(plain: bytes, **changes: Any) -> bytes:
    return forged(manifest(weights_sha256=hashlib.sha256(plain).hexdigest(), **changes), plain)


def with_arrays(change: Callable[[dict[str, Any]], None]) -> bytes:
    arrays: dict[str, Any] = {}
    for name, tensor in writer.open_bundle(GOLDEN).weights.items():
        if isinstance(tensor, Quantized):
            arrays |= {name: tensor.codes, name + bundle_v1.SCALES: tensor.scales[:, 0]}
        else:
            arrays[name] = tensor
    change(arrays)
    return with_weights(safetensors_bytes(arrays))


def test_golden_bytes_open() -> None:
    """A file written by version 1 of the format stays readable; hexadecimal so that a change shows in a diff."""
    opened = writer.open_bundle(GOLDEN)
    model = writer.rebuild(opened, Line())
    assert opened.format == 1 and opened.manifest.metrics == {"validation_accuracy": 0.5}
    assert opened.manifest.architecture is None and opened.onnx is None and not opened.signed
    assert opened.manifest.schemes == {"weight": "int8 by channel", "bias": "float32"}
    torch.testing.assert_close(model(torch.tensor([[1.0, 2.0]])), torch.tensor([[1.27 + 0.02, 0.0, 21 * 3 / 127 - 6]]))
    assert isinstance(tensor := opened.weights["weight"], Quantized) and restore(tensor).shape == (3, 2)
    assert (
        writer.open_bundle(with_arrays(lambda _: None)).manifest == opened.manifest
    )  # what the faults below begin with


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for position in range(len(GOLDEN)):
        damaged = bytearray(GOLDEN)
        damaged[position] ^= 1 << position % 8
        for data in (bytes(damaged), GOLDEN[:position]):
            with pytest.raises(errors.BundleError):
                writer.open_bundle(data)


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        (GOLDEN[:20], errors.Truncated, "header alone has 49"),
        (GOLDEN[:-1], errors.Truncated, "cut off"),
        (GOLDEN + b"\0", errors.TrailingBytes, "joined"),
        (GOLDEN[:-1] + bytes([GOLDEN[-1] ^ 1]), errors.ChecksumMismatch, "download it again"),
        (assembled(b"no zlib", b"", 0), errors.InvalidManifest, "not a zlib stream"),
        (assembled(b"", b"", 2**32 - 1), errors.TooLarge, "4,294,967,295"),
        (forged(b"{}"), errors.InvalidManifest, "invalid at task"),
        (forged(manifest(schemes={})), errors.InvalidManifest, "invalid at schemes"),
        (forged(plain_bytes=10), errors.InvalidWeights, "not after 10"),
        (forged(plain_bytes=10**6), errors.InvalidWeights, "not after 1,000,000"),
        (forged(weights=b"other"), errors.ChecksumMismatch, "from different students"),
        (with_weights(b"no safetensors at all"), errors.InvalidWeights, "not safetensors"),
        (with_weights(pickle.dumps({"weight": [1.0]})), errors.InvalidWeights, "not safetensors"),
        (with_arrays(lambda a: a.update(extra=np.zeros(2, np.float32))), errors.InvalidWeights, "extra"),
        (with_arrays(lambda a: a.pop("bias")), errors.InvalidWeights, "bias"),
        (with_arrays(lambda a: a.update(bias=np.full(3, np.nan, np.float32))), errors.InvalidWeights, "NaN"),
        (with_arrays(lambda a: a.update(bias=np.zeros(3))), errors.InvalidWeights, "F64"),
        (
            with_arrays(lambda a: a.update({"weight/scales": np.zeros(2, np.float32)})),
            errors.InvalidWeights,
            "scales",
        ),
    ],
)
def test_each_fault_has_its_error(damaged: bytes, error: type[errors.BundleError], message: str) -> None:
    with pytest.raises(errors.BundleError, match=message) as caught:
        writer.open_bundle(damaged)
    assert type(caught.value) is error


def test_a_small_file_cannot_fill_the_memory() -> None:
    bomb = assembled(zlib.compress(MANIFEST), zlib.compress(bytes(50_000_000)), 1000)
    tracemalloc.start()
    with pytest.raises(errors.InvalidWeights, match="not after 1,000"):
        writer.open_bundle(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_it_cannot_be_signed() -> None:
    with pytest.raises(errors.NotSigned):
        writer.open_bundle(GOLDEN, bytes(32))
