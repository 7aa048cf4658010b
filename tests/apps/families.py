"""Transformers as they are written elsewhere, small: Hugging Face modules made of a configuration, and others' ways.

`FAMILIES` has of each a function that makes it and one that makes a batch for it. `WIDE` are those whose outputs are
hidden states or whose positions are constants, so that the width of the residual stream is fixed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, HIDDEN, DEPTH, TOKENS = 32, 4, 64, 2, 120
FAMILIES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}
WIDE = {"t5", "clip_text", "bart"}


def batch() -> dict[str, Tensor]:
    """Return two texts of 9 tokens, the second padded."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    ids = torch.randint(5, TOKENS, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def pixels(name: str = "pixel_values") -> dict[str, Tensor]:
    """Return two images of 16 x 16."""
    return {name: torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def pretrained(model: str, config: str, inputs: Callable[[], Any] = batch, **settings: Any) -> Any:
    """Return a function that makes a model of transformers and a batch for it."""

    def make() -> tuple[nn.Module, Any]:
        with warnings.catch_warnings():  # its imports use what torch has deprecated
            warnings.simplefilter("ignore")
            import transformers

            made = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return made.eval(), inputs()

    return make


_BERT = {
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {"vocab_size": TOKENS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_inner": HIDDEN, "n_positions": 40}
_VIT = {**_BERT, "image_size": 16, "patch_size": 4}
_VIT.pop("vocab_size")
_T5 = {"vocab_size": TOKENS, "d_model": WIDTH, "num_layers": DEPTH, "num_heads": HEADS, "d_kv": 8, "d_ff": HIDDEN}
_SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", DEPTH), ("attention_heads", HEADS), ("ffn_dim", HIDDEN))
}
FAMILIES |= {
    "bert": pretrained("BertForSequenceClassification", "BertConfig", **_BERT),
    "roberta": pretrained("RobertaForSequenceClassification", "RobertaConfig", **_BERT),
    "electra": pretrained("ElectraForSequenceClassification", "ElectraConfig", embedding_size=16, **_BERT),
    "mpnet": pretrained("MPNetForSequenceClassification", "MPNetConfig", **_BERT),
    "distilbert": pretrained(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        vocab_size=TOKENS,
        dim=WIDTH,
        n_layers=DEPTH,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        max_position_embeddings=40,
    ),
    "deberta": pretrained(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        **_BERT,
    ),
    "gpt2": pretrained("GPT2LMHeadModel", "GPT2Config", **_GPT),
    "gpt2_classes": pretrained("GPT2ForSequenceClassification", "GPT2Config", num_labels=3, pad_token_id=0, **_GPT),
    "opt": pretrained(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        ffn_dim=HIDDEN,
        max_position_embeddings=40,
        word_embed_proj_dim=WIDTH,
    ),
    "gpt_neox": pretrained("GPTNeoXForCausalLM", "GPTNeoXConfig", **_BERT),
    "llama": pretrained("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
    "mistral": pretrained("MistralForCausalLM", "MistralConfig", **_LLAMA),
    "qwen2": pretrained("Qwen2ForSequenceClassification", "Qwen2Config", **_LLAMA),
    "qwen3": pretrained("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **_LLAMA),
    "gemma": pretrained("GemmaForCausalLM", "GemmaConfig", head_dim=8, **_LLAMA),
    "phi": pretrained("PhiForCausalLM", "PhiConfig", **_LLAMA),
    "t5": pretrained("T5EncoderModel", "T5Config", **_T5),
    "clip_text": pretrained("CLIPTextModel", "CLIPTextConfig", **_BERT, eos_token_id=2),
    "bart": pretrained(
        "BartModel",
        "BartConfig",
        vocab_size=TOKENS,
        d_model=WIDTH,
        max_position_embeddings=40,
        eos_token_id=2,
        **_SIDES,
    ),
    "vit": pretrained("ViTForImageClassification", "ViTConfig", pixels, **_VIT),
    "deit": pretrained("DeiTForImageClassification", "DeiTConfig", pixels, **_VIT),
    "swin": pretrained(
        "SwinForImageClassification",
        "SwinConfig",
        pixels,
        image_size=16,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=3,
    ),
}
HUGGING_FACE = tuple(FAMILIES)


def family(made: type[nn.Module]) -> type[nn.Module]:
    """Register a class of one's own under its name."""

    def make() -> tuple[nn.Module, Any]:
        model = made()
        if getattr(made, "vision", False):
            return model.eval(), pixels("x")["x"]
        return model.eval(), batch()["input_ids"]

    FAMILIES[made.__name__] = make
    return made


class _VisionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.self_attention(inner, inner, inner, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


@family
class TorchvisionViT(nn.Module):
    """As torchvision has it: `nn.MultiheadAttention`, a class token, positions as a parameter, blocks by name."""

    vision = True

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = WIDTH
        self.conv_proj = nn.Conv2d(3, WIDTH, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embedding = nn.Parameter(torch.randn(1, 17, WIDTH) * 0.02)
        self.layers = nn.Sequential(OrderedDict((f"encoder_layer_{i}", _VisionBlock()) for i in range(DEPTH)))
        self.ln, self.heads = nn.LayerNorm(WIDTH), nn.Sequential(OrderedDict(head=nn.Linear(WIDTH, 5)))

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = self.conv_proj(x).reshape(n, self.hidden_dim, 16).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        return self.heads(self.ln(self.layers(x))[:, 0])


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _TimmBlock(nn.Module):
    """As timm has it: queries, keys and values by one reshape, and the merged width by the inputs' (C) or its own."""

    def __init__(self, by_input: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.by_input = HEADS, WIDTH // HEADS, WIDTH, by_input
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.fc1, self.fc2, self.ls1, self.ls2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), _Scale(), _Scale()

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value).transpose(1, 2)
        x = x + self.ls1(self.proj(mixed.reshape(n, length, width if self.by_input else self.attn_dim)))
        return x + self.ls2(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


@family
class TimmViT(nn.Module):
    vision = True
    by_input = False

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.reg_token = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(_TimmBlock(self.by_input) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = [self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x]
        return self.head(self.norm(self.blocks(torch.cat(tokens, 1)))[:, 0])


@family
class TimmViTByInput(TimmViT):
    """Heads and width can only shrink together."""

    by_input = True


@family
class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder`, whose fused path for inference knows one size of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.randn(40, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        return self.head(self.encoder(x, src_key_padding_mask=ids == 0).mean(1))


class _NanoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = HEADS, WIDTH
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.size()
        parts = self.c_attn(self.ln_1(x)).split(self.n_embd, dim=2)
        query, key, value = (part.view(n, length, self.n_head, width // self.n_head).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).contiguous().view(n, length, width))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


@family
class NanoGpt(nn.Module):
    """As nanoGPT: the size of a head is the width by the number of heads, in the forward pass; tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(TOKENS, WIDTH), nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList(_NanoBlock() for _ in range(DEPTH))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class _EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(HEADS, WIDTH, 8) / 6) for _ in range(3))
        self.out = nn.Parameter(torch.randn(HEADS, 8, WIDTH) / 6)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("nlw,hwd->nhld", x, part) for part in (self.query, self.key, self.value))
        maps = (torch.einsum("nhld,nhmd->nhlm", query, key) / 8**0.5).softmax(-1)
        return torch.einsum("nhld,hdw->nlw", maps @ value, self.out)


@family
class EinsumWeights(nn.Module):
    """Bare weights by head, and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(WIDTH), _EinsumAttention(), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)])
            for _ in range(DEPTH)
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for norm, attention, up, down in self.blocks:
            x = x + attention(norm(x))
            x = x + down(F.gelu(up(x)))
        return self.head(x.mean(1))


class _GroupedBlock(nn.Module):
    """Keys and values in one projection, for half as many heads; gate and value of the feed-forward in one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups, self.size = HEADS, 2, 8
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.query, self.out = nn.Linear(WIDTH, HEADS * 8, bias=False), nn.Linear(HEADS * 8, WIDTH, bias=False)
        self.key_value = nn.Linear(WIDTH, 2 * 2 * 8, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        inner = self.norm(x)
        query = self.query(inner).view(n, length, self.heads, self.size).transpose(1, 2)
        key, value = self.key_value(inner).view(n, length, 2, self.groups, self.size).permute(2, 0, 3, 1, 4)
        key, value = (part.repeat_interleave(self.heads // self.groups, 1) for part in (key, value))
        mixed = (query @ key.transpose(-2, -1) / 8**0.5).softmax(-1) @ value
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, self.heads * self.size))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


@family
class GroupedByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.randn(1, 40, WIDTH) * 0.02)
        self.blocks, self.head = nn.Sequential(_GroupedBlock(), _GroupedBlock()), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(ids) + self.places[:, : ids.shape[1]]).mean(1))
