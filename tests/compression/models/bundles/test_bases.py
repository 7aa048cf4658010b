"""Bundles of what was trained alone: put together with their base they are to the bit what was written, or an error."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.apps import frozen_base
from torch import nn

from fedpress.compression import safetensors_files
from fedpress.compression.models import pretrained
from fedpress.compression.models.bundles import bases, errors, reader, writer
from fedpress.compression.models.bundles.bases import BaseFiles
from fedpress.compression.models.quantization import quantize, quantized_tensor
from fedpress.compression.models.quantization.settings import Quantization

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")), reason="needs the extra onnx"
)
TASK = frozen_base.FrozenBase()
EXAMPLE = torch.zeros(1, frozen_base.FEATURES)


def files(path: Path, seed: int = 3, dtype: torch.dtype = torch.float32) -> BaseFiles:
    save_file({name: tensor.to(dtype) for name, tensor in frozen_base.encoder(seed).items()}, path)
    return BaseFiles(path, safetensors_files.sha256(path))


@pytest.fixture
def base(tmp_path: Path) -> BaseFiles:
    return files(tmp_path / "base.safetensors")


def trained(base: BaseFiles) -> nn.Module:
    """The base under a head that was trained."""
    torch.manual_seed(1)
    model = frozen_base.Classifier()
    pretrained.fill(model, pretrained.Weights(base.path))
    return model.eval()


def written(
    model: nn.Module, base: BaseFiles, *, bits: int = 8, key: bytes | None = None, onnx: bytes | None = None
) -> bytes:
    kept = pretrained.shared(model, pretrained.Weights(base.path))
    tensors = quantize.quantize(model, Quantization(bits=bits), kept=kept)
    return writer.save(
        model, tensors, EXAMPLE, task=TASK.name, tier="laptop", version=2, metrics={}, private_key=key, base=base,
        onnx=onnx,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 3])
def test_put_together_it_is_what_was_written(tmp_path: Path, dtype: torch.dtype, bits: int) -> None:
    base = files(tmp_path / "base.safetensors", dtype=dtype)
    model = trained(base)
    data = written(model, base, bits=bits)
    opened = reader.open_bundle(data)
    assert set(opened.weights) == {"head.weight", "head.bias"}
    assert len(data) < sum(tensor.numel() for tensor in model.head.parameters()) + 1500  # type: ignore[union-attr]
    whole = bases.assembled(opened, base.path)
    rebuilt = writer.rebuild(whole, TASK)
    expected = copy.deepcopy(model)
    expected.head.weight.data = torch.from_numpy(  # type: ignore[union-attr]
        quantized_tensor.dequantize(dict(opened.weights))["head.weight"]
    )
    rows = torch.randn(5, frozen_base.FEATURES, generator=torch.Generator().manual_seed(0))
    for name in ("encoder.0.weight", "encoder.0.bias"):
        assert torch.equal(rebuilt.state_dict()[name], model.state_dict()[name])
    torch.testing.assert_close(rebuilt(rows), expected(rows), rtol=1e-3, atol=1e-3)
    assert bases.assembled(whole, base.path).manifest == whole.manifest  # once more changes nothing


def test_a_signature_covers_what_is_in_the_file_and_the_hash_of_the_rest(base: BaseFiles) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key().public_bytes_raw()
    opened = reader.open_bundle(written(trained(base), base, key=b"k" * 32), public)
    assert opened.signed and opened.manifest.base is not None and opened.manifest.base.sha256 == base.sha256


def test_without_its_base_it_says_which_one_is_wanted(base: BaseFiles, tmp_path: Path) -> None:
    opened = reader.open_bundle(written(trained(base), base))
    with pytest.raises(errors.NoBase, match=f"{base.sha256}.*no place was given"):
        writer.rebuild(opened, TASK)
    with pytest.raises(errors.NoBase, match=f"{base.sha256}.*there is no .*absent"):
        bases.with_base(opened, tmp_path / "absent")
    other = files(tmp_path / "other.safetensors", seed=4)
    with pytest.raises(
        errors.NoBase, match=f"{base.sha256}.*other.safetensors .SHA-256 {other.sha256}.: another model"
    ):
        bases.with_base(opened, other.path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(base.path.read_bytes()[:-4])
    with pytest.raises(errors.NoBase, match=f"{base.sha256}.*damaged.safetensors"):
        bases.with_base(opened, damaged)


def test_it_is_found_among_others_and_in_folders_of_several_files(base: BaseFiles, tmp_path: Path) -> None:
    store, shards = tmp_path / "bases", tmp_path / "shards"
    (store / "notes").mkdir(parents=True)
    (store / "readme.txt").write_text("what is where")
    files(store / "another.safetensors", seed=5)
    (store / "mine.safetensors").symlink_to(base.path)
    assert bases.find(base.sha256, None, tmp_path / "absent", store) == store / "mine.safetensors"
    shards.mkdir()
    for number, (name, tensor) in enumerate(frozen_base.encoder(3).items()):
        save_file({name: tensor}, shards / f"{number}.safetensors")
    split = BaseFiles(shards, safetensors_files.sha256(shards))
    opened = reader.open_bundle(written(trained(split), split))
    assert bases.with_base(opened, shards).weights.keys() == trained(split).state_dict().keys()


def test_what_is_put_together_is_compared_with_the_hash_of_the_whole(base: BaseFiles) -> None:
    opened = reader.open_bundle(written(trained(base), base))
    weights = {**opened.weights, "head.bias": np.ones(frozen_base.CLASSES, np.float32)}
    with pytest.raises(errors.DoesNotFit, match="put together, bundle and base have SHA-256"):
        bases.assembled(opened._replace(weights=weights), base.path)
    assert opened.manifest.base is not None
    moved = opened.manifest.base.model_copy(update={"tensors": {"encoder.0.bias": "absent"}})
    with pytest.raises(errors.NoBase, match="lacks 1 of the 1 tensors of the base: 'absent'"):
        bases.assembled(opened._replace(manifest=opened.manifest.model_copy(update={"base": moved})), base.path)


def test_a_model_of_which_all_is_trained_has_no_such_bundle(base: BaseFiles) -> None:
    model = trained(base).requires_grad_(True)
    with pytest.raises(errors.NoBase, match="none of the model's tensors that are not trained"):
        written(model, base)


def test_weights_that_are_to_stay_cannot_become_zeros(base: BaseFiles) -> None:
    with pytest.raises(ValueError, match="some are to stay"):
        quantize.quantize(trained(base), Quantization(sparsity=0.5), kept=["encoder.0.weight"])


def test_a_bundle_without_a_base_is_returned_as_it_is(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    data = writer.save(model, quantize.quantize(model), torch.zeros(1, 2), task="line", tier="x", version=0, metrics={})
    opened = reader.open_bundle(data)
    assert bases.with_base(opened, tmp_path / "absent") is opened


@NEEDS_ONNX
def test_a_graph_refers_to_what_base_and_bundle_hold(base: BaseFiles) -> None:
    """The file of a bundle with a graph is hardly longer, and the graph answers as the student does."""
    from fedpress.compression.models.bundles import onnx_export, onnx_runtime, onnx_weights

    model = trained(base)
    rows = torch.randn(9, frozen_base.FEATURES, generator=torch.Generator().manual_seed(0))
    kept = ["encoder.0.weight", "encoder.0.bias"]
    tensors = quantize.quantize(model, kept=kept)
    student = quantize.applied(model, tensors)
    graph = onnx_export.export(student, rows)
    data = written(model, base, onnx=onnx_weights.without(graph, tensors))
    opened = reader.open_bundle(data)
    assert opened.onnx is not None and len(opened.onnx) < 2_000 < len(graph)
    with pytest.raises(onnx_runtime.ExternalData):
        onnx_runtime.runner(opened.onnx)
    whole = bases.assembled(opened, base.path)
    assert whole.onnx is not None
    run = onnx_runtime.runner(onnx_weights.filled(whole.onnx, whole.weights))
    np.testing.assert_allclose(run(rows.numpy()), student(rows).detach(), rtol=1e-4)
