"""Bundles, whole and damaged, that the tests of this folder share."""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from fedpress.compression.models.bundles import container, weight_coding, writer
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.task import Splits, Task

KEY = bytes(range(32))


PUBLIC = Ed25519PrivateKey.from_private_bytes(KEY).public_key().public_bytes_raw()


EXAMPLE = torch.zeros(1, 1, 8, 8)


class Images(Task):
    """A small convolutional network on images of 8x8."""

    name = "images"

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(54, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        )

    def data(self) -> Splits:
        raise AssertionError("a bundle is rebuilt without data")


class Line(Task):
    """Two numbers in, one out."""

    name = "line"

    def model(self) -> nn.Module:
        return nn.Linear(2, 3)

    def students(self) -> Mapping[str, Callable[[], nn.Module]]:
        return {"deep": lambda: nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))}

    def data(self) -> Splits:
        raise AssertionError("a bundle is rebuilt without data")


def student() -> nn.Module:
    torch.manual_seed(0)
    model = Images().model()
    model(torch.randn(16, 1, 8, 8))  # so that the running statistics are not those of a fresh model
    return structural.keep_fraction(model, EXAMPLE, 0.5)


def saved(model: nn.Module, settings: Quantization = Quantization(), **changes: Any) -> bytes:
    given = {"task": "images", "tier": "phone", "version": 3, "metrics": {"validation_accuracy": 0.9}} | changes
    return writer.save(model, quantize.quantize(model, settings), EXAMPLE, **given)


STUDENT = student()


DATA = saved(STUDENT, private_key=KEY, onnx=b"to run")


START = container.HEADER.size + container.DIGEST_BYTES


_, _, MANIFEST_BYTES, WEIGHTS_BYTES, ONNX_BYTES, _, _ = container.HEADER.unpack_from(DATA)


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Manifest, unpacked, and weights."""
    opened = container.unpack(data)
    return opened.manifest, bytes(opened.weights)


MANIFEST, WEIGHTS = parts(DATA)


CODED = parts(saved(STUDENT, Quantization(bits=4, sparsity=0.6)))
"""The same student, its codes in the entropy-coded string."""


def assembled(packed: bytes, coded: bytes, deflated: bytes = b"", plain_bytes: int = 0, flag: int = 0) -> bytes:
    """A file whose lengths and checksum are right, whatever it carries."""
    head = container.HEADER.pack(
        container.MAGIC, container.VERSION, len(packed), len(coded), len(deflated), plain_bytes, flag
    )
    body = packed + coded + deflated
    return head + hashlib.sha256(head + body).digest() + body


def forged(manifest: bytes = MANIFEST, coded: bytes = WEIGHTS) -> bytes:
    return assembled(zlib.compress(manifest), coded)


def manifest(**changes: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST) | changes).encode()


def with_tensors(change: Callable[[dict[str, Any]], None]) -> bytes:
    tensors = quantize.quantize(STUDENT)
    change(tensors)
    return forged(coded=weight_coding.pack(tensors)[0])


FIELDS = ("magic", "version", "manifest", "coded", "onnx", "plain", "flag")


def header(**changes: int) -> bytes:
    fields = dict(zip(FIELDS, container.HEADER.unpack_from(DATA), strict=True))
    return container.HEADER.pack(*(fields | changes).values()) + DATA[container.HEADER.size :]


SCHEMES = json.loads(MANIFEST)["schemes"]


SHAPES = json.loads(MANIFEST)["shapes"]


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the bundle ran code that it carried",))
