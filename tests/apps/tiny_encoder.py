"""A pretrained text encoder of a few kilobytes in a folder of Hugging Face's form: settings, tokenizer, weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WORDS = "the sea is still wind rain falls river hill seven goats stood in and nobody came to count them".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write(folder: Path, family: str = "bert", seed: int = 0) -> Path:
    """Write an encoder of a family of transformers with drawn weights, and return its folder."""
    import tokenizers
    import transformers
    from tokenizers import models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    size = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0}
    config = {
        "bert": lambda: transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **size
        ),
        "distilbert": lambda: transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **size),
        "roberta": lambda: transformers.RobertaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            **size | {"pad_token_id": 1},
        ),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            **size,
        ),
    }[family]()
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: number for number, word in enumerate([*SPECIAL, *WORDS])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def texts(folder: Path, number: int = 60) -> Path:
    """Write labeled texts that an encoder of these words can tell apart, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(1)
    for label, words in (("first", WORDS[:9]), ("second", WORDS[9:])):
        drawn = torch.randint(len(words), (number, 8), generator=draw)
        (folder / f"{label}.txt").write_text(
            "\n".join(" ".join(words[word] for word in line) for line in drawn.tolist())
        )
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights that `write` wrote."""
    return load_file(folder / "model.safetensors")
