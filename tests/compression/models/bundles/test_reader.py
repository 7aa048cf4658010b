"""Opening a bundle: without torch, whole or not at all, and nothing that it carries is run."""

import hashlib
import io
import pickle
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models.bundles.samples import (
    CODED,
    DATA,
    KEY,
    MANIFEST,
    PUBLIC,
    SCHEMES,
    SHAPES,
    STUDENT,
    WEIGHTS,
    Images,
    Line,
    Trap,
    assembled,
    forged,
    manifest,
    saved,
    with_tensors,
)
from torch import nn

from fedpress.compression.models.bundles import errors, reader, writer
from fedpress.compression.models.quantization import quantize, quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized
from fedpress.compression.models.quantization.settings import Quantization

GOLDEN = Path(__file__).parents[1] / "golden" / "linear-2.hex"


def test_sizes_go_by_the_manifest_and_by_what_the_device_takes() -> None:
    zeros = saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 100)), Quantization(sparsity=0.99))
    opened = reader.open_bundle(zeros)
    decoded = sum(
        part.nbytes
        for tensor in opened.weights.values()
        for part in (tensor[:2] if isinstance(tensor, Quantized) else [tensor])
    )
    assert len(zeros) < decoded and reader.open_bundle(zeros, limit=decoded).sha256 == opened.sha256
    with pytest.raises(errors.TooLarge, match="tensors of .* allow more"):
        reader.open_bundle(zeros, limit=decoded - 1)
    stuffed = forged(coded=WEIGHTS + bytes(20_000))
    entries = sum(int(np.prod(shape)) for shape in SHAPES.values())
    large = reader.GRAPH_BYTES + reader.ONNX_BYTES * entries + 1
    bomb = assembled(zlib.compress(MANIFEST), WEIGHTS, zlib.compress(bytes(large)), large)
    for data, message in (
        (stuffed, "the tensors of the manifest take at most"),
        (bomb, "one of the manifest's tensors"),
    ):
        tracemalloc.start()
        with pytest.raises(errors.TooLarge, match=message):
            reader.open_bundle(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_golden_bytes_open() -> None:
    """A file written by version 2 of the format stays readable; hexadecimal so that a change shows in a diff."""
    opened = reader.open_bundle(bytes.fromhex(GOLDEN.read_text()), PUBLIC)
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


@given(st.data())
def test_any_damage_to_the_weights_under_a_right_checksum_is_refused_or_gives_weights(data: st.DataObject) -> None:
    """Whoever makes a file can make its checksum: bytes that are wrong all the same must do no harm."""
    said, whole = data.draw(st.sampled_from([(MANIFEST, WEIGHTS), CODED]))
    at = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(at, min(len(whole), at + 20)))
    damaged = forged(said, whole[:at] + data.draw(st.binary(max_size=20)) + whole[end:])
    try:
        model = writer.rebuild(reader.open_bundle(damaged), Images())
    except errors.BundleError:
        return
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_nothing_carried_is_unpickled() -> None:
    torch_file = io.BytesIO()
    torch.save({"0.weight": Trap()}, torch_file)
    for trap in (pickle.dumps(Trap()), torch_file.getvalue()):
        for damaged in (trap, forged(trap), forged(coded=trap)):
            with pytest.raises(errors.BundleError):
                reader.open_bundle(damaged)
        assert reader.open_bundle(saved(STUDENT, onnx=trap)).onnx == trap  # bytes, until somebody runs it


def test_the_golden_bytes_are_written_again() -> None:
    written, kept = (reader.open_bundle(data, PUBLIC) for data in (golden(), bytes.fromhex(GOLDEN.read_text())))
    assert written.manifest == kept.manifest and written.forms == kept.forms and written.signed == kept.signed
    assert written.weights_bytes == kept.weights_bytes  # zlib's may differ from one build to the next
    for name, tensor in quantized_tensor.dequantize(written.weights).items():
        np.testing.assert_array_equal(tensor, quantized_tensor.dequantize(kept.weights)[name])


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int4 by channel"})), errors.InvalidWeights, "exceeds? 4 bits"),
        (forged(manifest(schemes=SCHEMES | {"7.weight": "int8 by 2"})), errors.InvalidWeights, "weights"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [9]})), errors.InvalidWeights, "form|entropy|table|expected"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [2**26]})), errors.TooLarge, "1,024 a byte"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [2**30]})), errors.TooLarge, "tensors of 4,294,967,893 bytes"),
        (forged(manifest(shapes=SHAPES | {"7.bias": [2**40]})), errors.InvalidManifest, "less than or equal to"),
        (forged(coded=b""), errors.InvalidWeights, "0.weight"),
        (forged(coded=WEIGHTS + bytes(2)), errors.InvalidWeights, "left over"),
        (forged(coded=pickle.dumps({"0.weight": [1.0]})), errors.InvalidWeights, "0.weight"),
        (with_tensors(lambda t: t.update({"7.bias": np.full(10, np.nan, np.float32)})), errors.InvalidWeights, "NaN"),
    ],
)
def test_each_fault_has_its_error(damaged: bytes, error: type[errors.BundleError], message: str) -> None:
    with pytest.raises(errors.BundleError, match=message) as caught:
        reader.open_bundle(damaged)
    assert type(caught.value) is error


def test_shapes_cannot_fill_the_memory() -> None:
    bomb = forged(manifest(shapes=SHAPES | {"7.weight": [50_000, 1_000]}))
    tracemalloc.start()
    with pytest.raises(errors.TooLarge, match="a byte"):
        reader.open_bundle(bomb)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_device_without_torch_opens_it(tmp_path: Path) -> None:
    (tmp_path / "student.fpb").write_bytes(DATA)
    program = (
        "import sys; from pathlib import Path; from fedpress.compression.models.bundles import reader;"
        " opened = reader.open_bundle(Path(sys.argv[1]).read_bytes()); print(opened.sha256, 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "student.fpb")], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [hashlib.sha256(DATA).hexdigest(), "False"]
