"""The download file: it opens to what was saved, each fault has its error, and no flipped bit gets through."""

import hashlib
import io
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
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from fedpress.compression.models import bundle, prune, quantize
from fedpress.compression.models.task import Splits, Task

GOLDEN = Path(__file__).parent / "golden" / "linear.hex"
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

    def data(self) -> Splits:
        raise AssertionError("a bundle is rebuilt without data")


def student() -> nn.Module:
    torch.manual_seed(0)
    model = Images().model()
    model(torch.randn(16, 1, 8, 8))  # so that the running statistics are not those of a fresh model
    return prune.keep_fraction(model, EXAMPLE, 0.5)


def saved(model: nn.Module, **changes: Any) -> bytes:
    given = {"task": "images", "tier": "phone", "version": 3, "metrics": {"validation_accuracy": 0.9}} | changes
    return bundle.save(model, quantize.quantize(model), EXAMPLE, **given)


STUDENT = student()
DATA = saved(STUDENT)
START = bundle.HEADER.size + bundle.DIGEST_BYTES
MANIFEST_BYTES = bundle.HEADER.unpack_from(DATA)[2]


def forged(manifest: bytes | None = None, weights: bytes | None = None, plain_bytes: int | None = None) -> bytes:
    """A file whose checksums are right, whatever it carries; `manifest` and `weights` are before zlib."""
    packed = DATA[START : START + MANIFEST_BYTES] if manifest is None else zlib.compress(manifest)
    plain = zlib.decompress(DATA[START + MANIFEST_BYTES :]) if weights is None else weights
    return assembled(packed, zlib.compress(plain), len(plain) if plain_bytes is None else plain_bytes)


def assembled(packed: bytes, coded: bytes, plain_bytes: int) -> bytes:
    head = bundle.HEADER.pack(bundle.MAGIC, bundle.VERSION, len(packed), len(coded), plain_bytes)
    return head + hashlib.sha256(head + packed + coded).digest() + packed + coded


def manifest(**changes: Any) -> bytes:
    fields = json.loads(zlib.decompress(DATA[START : START + MANIFEST_BYTES]))
    return json.dumps(fields | changes).encode()


def with_weights(plain: bytes, **changes: Any) -> bytes:
    return forged(manifest(weights_sha256=hashlib.sha256(plain).hexdigest(), **changes), plain)


def with_arrays(change: Callable[[dict[str, Any]], None]) -> bytes:
    arrays: dict[str, Any] = {}
    for name, tensor in quantize.quantize(STUDENT).items():
        if isinstance(tensor, quantize.Quantized):
            arrays |= {name: tensor.codes, name + bundle.SCALES: tensor.scales}
        else:
            arrays[name] = tensor
    change(arrays)
    return with_weights(safetensors_bytes(arrays))


def test_a_bundle_opens_to_the_quantised_student() -> None:
    opened = bundle.open_bundle(DATA)
    inputs = torch.randn(5, 1, 8, 8)
    generator = torch.random.get_rng_state()

    rebuilt = bundle.rebuild(opened, Images())

    assert torch.equal(generator, torch.random.get_rng_state())
    assert torch.equal(rebuilt(inputs), quantize.quantized_copy(STUDENT).eval()(inputs))
    assert opened.manifest.parameters == prune.parameters_of(STUDENT) == prune.parameters_of(rebuilt)
    assert (opened.manifest.tier, opened.manifest.version) == ("phone", 3)
    assert opened.manifest.metrics == {"validation_accuracy": 0.9}
    assert (opened.size, opened.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (opened.manifest.input_shape, opened.manifest.output_shape) == ((1, 8, 8), (10,))


def test_the_same_student_gives_the_same_bytes() -> None:
    assert saved(student()) == DATA


def test_saving_leaves_the_student_as_it_was() -> None:
    model = student().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_largest_size_holds_for_weights_that_do_not_compress() -> None:
    model = student()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)  # codes of equal frequency: no entropy code shortens them
    most = bundle.largest_bytes(STUDENT, EXAMPLE)
    assert most - 2 * bundle.ROOM_BYTES < len(saved(model)) <= most


def test_golden_bytes_open() -> None:
    """A file written by version 1 of the format stays readable; hexadecimal so that a change shows in a diff."""
    opened = bundle.open_bundle(bytes.fromhex(GOLDEN.read_text()))
    model = bundle.rebuild(opened, Line())
    assert opened.manifest.metrics == {"validation_accuracy": 0.5}
    torch.testing.assert_close(model(torch.tensor([[1.0, 2.0]])), torch.tensor([[1.27 + 0.02, 0.0, 21 * 3 / 127 - 6]]))


def test_every_flipped_bit_is_found() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            with pytest.raises(bundle.BundleError):
                bundle.open_bundle(bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_every_cut_is_found(length: int) -> None:
    with pytest.raises(bundle.Truncated):
        bundle.open_bundle(DATA[:length])


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_by_a_bundle_error(noise: bytes, with_header: bool) -> None:
    with pytest.raises(bundle.BundleError):
        bundle.open_bundle(DATA[: bundle.HEADER.size] + noise if with_header else noise)


@given(st.binary(max_size=300), st.booleans())
def test_any_content_under_right_checksums_is_refused_by_a_bundle_error(noise: bytes, in_manifest: bool) -> None:
    with pytest.raises(bundle.BundleError):
        bundle.open_bundle(forged(noise) if in_manifest else with_weights(noise))


def test_a_deeply_nested_manifest_is_refused() -> None:
    with pytest.raises(bundle.InvalidManifest):
        bundle.open_bundle(forged(b"[" * 100_000))


def header(**changes: int) -> bytes:
    fields = dict(zip(("magic", "version", "manifest", "coded", "plain"), bundle.HEADER.unpack_from(DATA), strict=True))
    return bundle.HEADER.pack(*(fields | changes).values()) + DATA[bundle.HEADER.size :]


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        (b"", bundle.Truncated, "0 bytes"),
        (DATA[:20], bundle.Truncated, "header alone has 49"),
        (DATA[:-1], bundle.Truncated, "cut off"),
        (b"PK\x03\x04" + DATA[4:], bundle.BadMagic, "another kind of file"),
        (header(version=2), bundle.UnsupportedVersion, "version 2, expected 1"),
        (header(manifest=bundle.MAX_MANIFEST_BYTES + 1), bundle.TooLarge, "1,048,577"),
        (header(coded=2**32 - 1), bundle.TooLarge, "4,294,967,295"),
        (header(plain=2**32 - 1), bundle.TooLarge, "decoded"),
        (DATA + b"\0", bundle.TrailingBytes, "joined"),
        (DATA[:-1] + bytes([DATA[-1] ^ 1]), bundle.ChecksumMismatch, "download it again"),
        (header(plain=7), bundle.ChecksumMismatch, "damaged"),
        (assembled(b"no zlib", b"", 0), bundle.InvalidManifest, "not a zlib stream"),
        (assembled(zlib.compress(b"{}") + b"more", b"", 0), bundle.InvalidManifest, "does not end"),
        (assembled(zlib.compress(b"{}")[:-1], b"", 0), bundle.InvalidManifest, "does not end"),
        (assembled(zlib.compress(b" " * (bundle.MAX_MANIFEST_BYTES + 1)), b"", 0), bundle.InvalidManifest, "1,048,576"),
        (forged(b"{"), bundle.InvalidManifest, "JSON"),
        (forged(b"{}"), bundle.InvalidManifest, "invalid at task"),
        (forged(manifest(tier="../../etc")), bundle.InvalidManifest, "invalid at tier"),
        (forged(manifest(version=-1)), bundle.InvalidManifest, "invalid at version"),
        (forged(manifest(version="3")), bundle.InvalidManifest, "invalid at version"),
        (forged(manifest(shapes={"0.weight": [1.5]})), bundle.InvalidManifest, "invalid at shapes"),
        (forged(manifest(run="import os")), bundle.InvalidManifest, "invalid at run"),
        (forged(manifest(metrics={"accuracy": float("nan")})), bundle.InvalidManifest, "invalid at"),
        (forged(plain_bytes=10), bundle.InvalidWeights, "more than 10"),
        (forged(plain_bytes=10**6), bundle.InvalidWeights, "header announces 1,000,000"),
        (forged(weights=b"other"), bundle.ChecksumMismatch, "from different students"),
        (with_weights(b"no safetensors at all"), bundle.InvalidWeights, "not safetensors"),
        (with_weights(pickle.dumps({"0.weight": [1.0]})), bundle.InvalidWeights, "not safetensors"),
        (with_arrays(lambda a: a.update(extra=np.zeros(2, np.float32))), bundle.InvalidWeights, "extra"),
        (with_arrays(lambda a: a.pop("7.bias")), bundle.InvalidWeights, "7.bias"),
        (with_arrays(lambda a: a.update({"7.bias": np.zeros(3, np.float32)})), bundle.InvalidWeights, "7.bias"),
        (with_arrays(lambda a: a.update({"7.bias": np.full(10, np.nan, np.float32)})), bundle.InvalidWeights, "NaN"),
        (with_arrays(lambda a: a.update({"7.bias": np.zeros(10)})), bundle.InvalidWeights, "F64"),
        (
            with_arrays(lambda a: a.update({"7.weight/scales": np.zeros(3, np.float32)})),
            bundle.InvalidWeights,
            "scales",
        ),
        (with_arrays(lambda a: a.update({"7.bias/scales": np.zeros(10, np.float32)})), bundle.InvalidWeights, "int8"),
    ],
)
def test_each_fault_has_its_error(damaged: bytes, error: type[bundle.BundleError], message: str) -> None:
    with pytest.raises(bundle.BundleError, match=message) as caught:
        bundle.open_bundle(damaged)
    assert type(caught.value) is error


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the bundle ran code that it carried",))


def test_nothing_carried_is_unpickled() -> None:
    torch_file = io.BytesIO()
    torch.save({"0.weight": Trap()}, torch_file)
    for trap in (pickle.dumps(Trap()), torch_file.getvalue()):
        for damaged in (trap, forged(trap), with_weights(trap)):
            with pytest.raises(bundle.BundleError):
                bundle.open_bundle(damaged)


def test_a_small_file_cannot_fill_the_memory() -> None:
    coded = zlib.compress(bytes(50_000_000))
    bomb = assembled(DATA[START : START + MANIFEST_BYTES], coded, 1000)
    tracemalloc.start()
    with pytest.raises(bundle.InvalidWeights, match="more than 1,000"):
        bundle.open_bundle(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def reshaped(name: str, *shape: int) -> bytes:
    """The bundle with one tensor of another shape, in manifest and weights alike."""
    arrays: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for key, tensor in quantize.quantize(STUDENT).items():
        values = tensor.codes if isinstance(tensor, quantize.Quantized) else tensor
        if key == name:
            values = np.zeros(shape, values.dtype)
        arrays[key], shapes[key] = values, values.shape
        if isinstance(tensor, quantize.Quantized):
            arrays[key + bundle.SCALES] = np.ones(len(values), np.float32)
    return with_weights(safetensors_bytes(arrays), shapes=shapes)


class Other(Images):
    """The same name, another model."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        (DATA, Line(), "of task 'images', expected 'line'"),
        (DATA, Other(), "no shape for|no tensor"),
        (forged(manifest(input_dtype="complex64")), Images(), "no model takes"),
        (forged(manifest(input_shape=[1, -8, 8])), Images(), "no model takes"),
        (forged(manifest(input_shape=[1, 8, 2**40])), Images(), "16,777,216"),
        (forged(manifest(input_shape=[3, 8, 8])), Images(), "does not fit the model"),
        (forged(manifest(output_shape=[11])), Images(), r"answers \(10,\), the manifest says \(11,\)"),
        (reshaped("7.weight", 10, 11), Images(), "does not fit the model"),  # the layer before has 10 neurons
        (reshaped("7.weight", 10, 2000), Images(), "at most the model's"),
        (reshaped("7.bias", 9), Images(), r"bias \(9,\) does not fit weight"),
    ],
)
def test_a_whole_bundle_for_something_else_does_not_fit(data: bytes, task: Task, message: str) -> None:
    opened = bundle.open_bundle(data)
    with pytest.raises(bundle.DoesNotFit, match=message):
        bundle.rebuild(opened, task)


def test_a_student_beyond_the_limits_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(bundle.TooLarge, match="at most"):
        saved(STUDENT)


def test_the_header_is_the_documented_one() -> None:
    magic, version, manifest_bytes, coded_bytes, _ = struct.unpack_from("<4sBIII", DATA)
    assert (magic, version) == (b"\x89FPB", 1)
    assert DATA[17:49] == hashlib.sha256(DATA[:17] + DATA[49:]).digest()
    assert len(DATA) == 49 + manifest_bytes + coded_bytes
