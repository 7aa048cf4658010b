"""The download file: it opens to what was saved, each fault has its error, and no flipped bit gets through."""

import hashlib
import io
import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.bundles import container, errors, weight_coding, writer
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.task import Splits, Task

GOLDEN = Path(__file__).parents[1] / "golden" / "linear-2.hex"
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
    return opened.manifest, opened.weights


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


def test_a_bundle_opens_to_the_quantized_student() -> None:
    opened = writer.open_bundle(DATA)
    inputs = torch.randn(5, 1, 8, 8)
    generator = torch.random.get_rng_state()

    rebuilt = writer.rebuild(opened, Images())

    assert torch.equal(generator, torch.random.get_rng_state())
    assert torch.equal(rebuilt(inputs), quantize.quantized_copy(STUDENT).eval()(inputs))
    assert opened.manifest.parameters == structural.parameters_of(STUDENT) == structural.parameters_of(rebuilt)
    assert (opened.manifest.tier, opened.manifest.version) == ("phone", 3)
    assert opened.manifest.metrics == {"validation_accuracy": 0.9}
    assert (opened.size, opened.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (opened.manifest.input_shape, opened.manifest.output_shape) == ((1, 8, 8), (10,))
    assert (opened.format, opened.onnx, opened.signed) == (2, b"to run", True)
    assert opened.manifest.schemes["0.weight"] == "int8 by channel" and opened.forms["0.weight"] == "packed"
    assert opened.manifest.schemes["1.num_batches_tracked"] == "int64" and opened.forms["7.bias"] == "float16"


def test_the_same_student_gives_the_same_bytes() -> None:
    assert saved(student(), private_key=KEY, onnx=b"to run") == DATA


def test_saving_leaves_the_student_as_it_was() -> None:
    model = student().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("settings", [Quantization(), Quantization(bits=4, group_size=9), Quantization(bits=2)])
def test_the_largest_size_holds_for_weights_that_do_not_compress(settings: Quantization) -> None:
    model = student()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)  # codes of equal frequency: no entropy code shortens them
    most = writer.largest_bytes(STUDENT, EXAMPLE, settings)
    assert most - 3 * writer.ROOM_BYTES < len(saved(model, settings)) <= most


def test_the_largest_size_of_a_sparse_student_holds() -> None:
    settings = Quantization(bits=4, sparsity=0.8)
    assert len(saved(STUDENT, settings)) <= writer.largest_bytes(STUDENT, EXAMPLE, settings)
    assert writer.largest_bytes(STUDENT, EXAMPLE, settings) < writer.largest_bytes(STUDENT, EXAMPLE)


def test_fewer_bits_make_a_smaller_file() -> None:
    sizes = [len(saved(STUDENT, Quantization(bits=bits))) for bits in range(8, 1, -1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0]


def test_golden_bytes_open() -> None:
    """A file written by version 2 of the format stays readable; hexadecimal so that a change shows in a diff."""
    opened = writer.open_bundle(bytes.fromhex(GOLDEN.read_text()), PUBLIC)
    model = writer.rebuild(opened, Line())
    assert opened.manifest.architecture == "deep" and opened.onnx == b"to run"
    assert opened.manifest.schemes == {
        "0.weight": "int4 by 1",
        "0.bias": "float32",
        "2.weight": "int4 by channel",
        "2.bias": "float32",
    }
    assert opened.forms == {"0.weight": "packed", "0.bias": "float16", "2.weight": "dense", "2.bias": "plain"}
    with torch.no_grad():
        hidden = torch.relu(torch.tensor([[1.0, 2.0]]) @ deep()[0].weight.T + deep()[0].bias)
        torch.testing.assert_close(model[0](torch.tensor([[1.0, 2.0]])).relu(), hidden)
        assert model[2].weight.count_nonzero() == 1 and model[2].weight[1, 4] == 0.5


def deep() -> nn.Sequential:
    """What the golden bytes hold; each weight of the first layer is a code times a power of two."""
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight.copy_(7 * 2.0 ** torch.arange(-5, 5).reshape(5, 2))
        model[0].bias.copy_(torch.arange(5) / 4)
        model[2].weight.zero_()[1, 4] = 0.5
        model[2].bias.copy_(torch.tensor([0.0, 1e-9, 2e6]))
    return model


def golden() -> bytes:
    """How the golden bytes were written."""
    model = deep()
    tensors = quantize.quantize(model, Quantization(bits=4, group_size=1))
    tensors["2.weight"] = Quantized((model[2].weight != 0).numpy().astype(np.int8), np.full((3, 1), 0.5, np.float32), 4)
    return writer.save(
        model,
        tensors,
        torch.zeros(1, 2),
        task="line",
        tier="phone",
        version=7,
        metrics={"validation_accuracy": 0.5},
        architecture="deep",
        onnx=b"to run",
        private_key=KEY,
    )


def test_every_flipped_bit_is_found() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            with pytest.raises(errors.BundleError):
                writer.open_bundle(bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_every_cut_is_found(length: int) -> None:
    with pytest.raises(errors.Truncated):
        writer.open_bundle(DATA[:length])


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_by_a_bundle_error(noise: bytes, with_header: bool) -> None:
    with pytest.raises(errors.BundleError):
        writer.open_bundle(DATA[: container.HEADER.size] + noise if with_header else noise)


@given(st.binary(max_size=300))
def test_any_manifest_under_a_right_checksum_is_refused_by_a_bundle_error(noise: bytes) -> None:
    with pytest.raises(errors.BundleError):
        writer.open_bundle(forged(noise))


@given(st.data())
def test_any_damage_to_the_weights_under_a_right_checksum_is_refused_or_gives_weights(data: st.DataObject) -> None:
    """Whoever makes a file can make its checksum: bytes that are wrong all the same must do no harm."""
    said, whole = data.draw(st.sampled_from([(MANIFEST, WEIGHTS), CODED]))
    at = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(at, min(len(whole), at + 20)))
    damaged = forged(said, whole[:at] + data.draw(st.binary(max_size=20)) + whole[end:])
    try:
        model = writer.rebuild(writer.open_bundle(damaged), Images())
    except errors.BundleError:
        return
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_deeply_nested_manifest_is_refused() -> None:
    with pytest.raises(errors.InvalidManifest):
        writer.open_bundle(forged(b"[" * 100_000))


FIELDS = ("magic", "version", "manifest", "coded", "onnx", "plain", "flag")


def header(**changes: int) -> bytes:
    fields = dict(zip(FIELDS, container.HEADER.unpack_from(DATA), strict=True))
    return container.HEADER.pack(*(fields | changes).values()) + DATA[container.HEADER.size :]


SCHEMES = json.loads(MANIFEST)["schemes"]
SHAPES = json.loads(MANIFEST)["shapes"]


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        (b"", errors.Truncated, "0 bytes"),
        (DATA[:20], errors.Truncated, "header alone has 54"),
        (DATA[:-1], errors.Truncated, "cut off"),
        (b"PK\x03\x04" + DATA[4:], errors.BadMagic, "another kind of file"),
        (header(version=1), errors.UnsupportedVersion, "version 1, expected 2"),
        (header(version=3), errors.UnsupportedVersion, "version 3, expected 2"),
        (header(flag=2), errors.UnsupportedVersion, "flag 2"),
        (header(manifest=container.MAX_MANIFEST_BYTES + 1), errors.TooLarge, "1,048,577"),
        (header(coded=2**32 - 1), errors.TooLarge, "4,294,967,295"),
        (header(onnx=2**32 - 1), errors.TooLarge, "4,294,967,295"),
        (header(plain=2**32 - 1), errors.TooLarge, "decoded"),
        (DATA + b"\0", errors.TrailingBytes, "joined"),
        (header(flag=0), errors.TrailingBytes, "joined"),
        (DATA[:-1] + bytes([DATA[-1] ^ 1]), errors.ChecksumMismatch, "download it again"),
        (header(plain=7), errors.ChecksumMismatch, "damaged"),
        (assembled(b"no zlib", b""), errors.InvalidManifest, "not a zlib stream"),
        (assembled(zlib.compress(b"{}") + b"more", b""), errors.InvalidManifest, "does not end"),
        (assembled(zlib.compress(b"{}")[:-1], b""), errors.InvalidManifest, "does not end"),
        (assembled(zlib.compress(bytes(container.MAX_MANIFEST_BYTES + 1)), b""), errors.InvalidManifest, "1,048,576"),
        (assembled(zlib.compress(MANIFEST), WEIGHTS, b"no zlib", 9), errors.InvalidOnnx, "not a zlib stream"),
        (assembled(zlib.compress(MANIFEST), WEIGHTS, zlib.compress(bytes(9)), 8), errors.InvalidOnnx, "more than 8"),
        (forged(b"{"), errors.InvalidManifest, "JSON"),
        (forged(b"{}"), errors.InvalidManifest, "invalid at task"),
        (forged(manifest(tier="../../etc")), errors.InvalidManifest, "invalid at tier"),
        (forged(manifest(version=-1)), errors.InvalidManifest, "invalid at version"),
        (forged(manifest(version="3")), errors.InvalidManifest, "invalid at version"),
        (forged(manifest(shapes={"0.weight": [1.5]})), errors.InvalidManifest, "invalid at shapes"),
        (forged(manifest(run="import os")), errors.InvalidManifest, "invalid at run"),
        (forged(manifest(metrics={"accuracy": float("nan")})), errors.InvalidManifest, "invalid at"),
        (forged(manifest(shapes=SHAPES | {"extra": [1]})), errors.InvalidManifest, "differ in .'extra'"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [-10]})), errors.InvalidManifest, "a shape of"),
        (forged(manifest(schemes=SCHEMES | {"7.bias": "float64"})), errors.InvalidManifest, "'float64' is no way"),
        (forged(manifest(schemes=SCHEMES | {"7.bias": "int8 by channel"})), errors.InvalidManifest, "is no way"),
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int9 by channel"})), errors.InvalidManifest, "is no way"),
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int4 by 0"})), errors.InvalidManifest, "is no way"),
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int4 by channel"})), errors.InvalidWeights, "not of 4 bits"),
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int8 by 2"})), errors.InvalidWeights, "weights"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [9]})), errors.InvalidWeights, "form|entropy|table|asked"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [2**40]})), errors.TooLarge, "1,024 a byte"),
        (forged(coded=b""), errors.InvalidWeights, "0.weight"),
        (forged(coded=WEIGHTS + bytes(2)), errors.InvalidWeights, "left over"),
        (forged(coded=pickle.dumps({"0.weight": [1.0]})), errors.InvalidWeights, "0.weight"),
        (with_tensors(lambda t: t.update({"7.bias": np.full(10, np.nan, np.float32)})), errors.InvalidWeights, "NaN"),
    ],
)
def test_each_fault_has_its_error(damaged: bytes, error: type[errors.BundleError], message: str) -> None:
    with pytest.raises(errors.BundleError, match=message) as caught:
        writer.open_bundle(damaged)
    assert type(caught.value) is error


def test_a_signature_is_verified_by_the_key_that_is_given() -> None:
    assert writer.open_bundle(DATA, PUBLIC).sha256 == writer.open_bundle(DATA).sha256
    for file, key in ((DATA, bytes(32)), (saved(STUDENT, private_key=bytes(32)), PUBLIC)):
        with pytest.raises(errors.WrongSignature, match="somebody else"):
            writer.open_bundle(file, key)
    with pytest.raises(errors.NotSigned, match="carries no signature"):
        writer.open_bundle(saved(STUDENT), PUBLIC)


def test_nothing_that_is_signed_can_be_changed_and_the_checksum_mended() -> None:
    head = container.HEADER.size
    body = START + MANIFEST_BYTES + WEIGHTS_BYTES + ONNX_BYTES
    for position in [4 + 4, *range(START, body, 7), body, len(DATA) - 1]:
        damaged = bytearray(DATA)
        damaged[position] ^= 1
        damaged[head:START] = hashlib.sha256(damaged[:head] + damaged[START:]).digest()
        with pytest.raises(errors.BundleError) as caught:
            writer.open_bundle(bytes(damaged), PUBLIC)
        assert isinstance(
            caught.value, errors.WrongSignature | errors.Truncated | errors.TrailingBytes | errors.TooLarge
        )


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the bundle ran code that it carried",))


def test_nothing_carried_is_unpickled() -> None:
    torch_file = io.BytesIO()
    torch.save({"0.weight": Trap()}, torch_file)
    for trap in (pickle.dumps(Trap()), torch_file.getvalue()):
        for damaged in (trap, forged(trap), forged(coded=trap)):
            with pytest.raises(errors.BundleError):
                writer.open_bundle(damaged)
        assert writer.open_bundle(saved(STUDENT, onnx=trap)).onnx == trap  # bytes, until somebody runs it


def test_a_small_file_cannot_fill_the_memory() -> None:
    deflated = zlib.compress(bytes(50_000_000))
    bombs = [
        assembled(zlib.compress(MANIFEST), WEIGHTS, deflated, 1000),
        assembled(deflated, WEIGHTS),
        forged(manifest(shapes=SHAPES | {"7.weight": [50_000, 1_000]})),
    ]
    for bomb in bombs:
        tracemalloc.start()
        with pytest.raises(errors.BundleError, match="more than|a byte"):
            writer.open_bundle(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()


def reshaped(name: str, *shape: int) -> bytes:
    """The bundle with one tensor of another shape, in manifest and weights alike."""
    tensors = quantize.quantize(STUDENT)
    tensor = tensors[name]
    if isinstance(tensor, Quantized):
        tensors[name] = Quantized(np.ones(shape, np.int8), np.ones((shape[0], 1), np.float32))
    else:
        tensors[name] = np.zeros(shape, tensor.dtype)
    return forged(manifest(shapes=SHAPES | {name: shape}), weight_coding.pack(tensors)[0])


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
        (forged(manifest(architecture="deep")), Images(), "has no student architecture 'deep', it has none"),
        (forged(manifest(task="line", architecture="wide")), Line(), "'wide', it has deep"),
        (forged(manifest(task="line", architecture="deep")), Line(), "does not fit the model"),
    ],
)
def test_a_whole_bundle_for_something_else_does_not_fit(data: bytes, task: Task, message: str) -> None:
    opened = writer.open_bundle(data)
    with pytest.raises(errors.DoesNotFit, match=message):
        writer.rebuild(opened, task)


def test_a_student_of_a_named_architecture_is_rebuilt() -> None:
    model = Line().students()["deep"]()
    tensors = quantize.quantize(model)
    made = {"task": "line", "tier": "phone", "version": 0, "metrics": {}}
    data = writer.save(model, tensors, torch.zeros(1, 2), **made, architecture="deep")  # type: ignore[arg-type]
    rebuilt = writer.rebuild(writer.open_bundle(data), Line())
    inputs = torch.randn(5, 2)
    assert torch.equal(rebuilt(inputs), quantize.applied(model, tensors)(inputs))


def test_a_student_beyond_the_limits_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(errors.TooLarge, match="at most"):
        saved(STUDENT)


def test_the_header_is_the_documented_one() -> None:
    magic, version, manifest_bytes, weights_bytes, onnx_bytes, plain_bytes, flag = struct.unpack_from("<4sBIIIIB", DATA)
    assert (magic, version, plain_bytes, flag) == (b"\x89FPB", 2, 6, 1)
    assert DATA[22:54] == hashlib.sha256(DATA[:22] + DATA[54:]).digest()
    assert len(DATA) == 54 + manifest_bytes + weights_bytes + onnx_bytes + 64
