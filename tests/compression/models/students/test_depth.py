"""Which layers go: the order asked for, as many as asked for, and every model of a library that has layers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps.stacked import Looped, UNet
from torch import Tensor, nn

from fedpress.compression.models import architecture, inputs, outputs, stacks
from fedpress.compression.models.pruning.settings import LayerOrder
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.stacks import NoStack
from fedpress.compression.models.students import depth
from fedpress.compression.models.transformer import VisionTransformer

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model(blocks: int = 6) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(8, 4, width=8, depth=blocks, heads=2, hidden=8, classes=3)


def left(whole: VisionTransformer, small: nn.Module) -> list[int]:
    """Return which blocks of a model are left in a smaller one, by their weights."""
    norms = [block.hidden[0].weight for block in whole.blocks]  # type: ignore[union-attr,index]
    return [
        next(number for number, norm in enumerate(norms) if torch.equal(norm, block.hidden[0].weight))
        for block in small.blocks  # type: ignore[union-attr]
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6))
def test_as_many_blocks_are_kept_as_asked_for_with_their_weights(blocks: int, count: int) -> None:
    whole = model(blocks)
    if count >= blocks:
        with pytest.raises(NoStack, match=f"layers is {count}, but no stack has more blocks: blocks {blocks}"):
            depth.drop(whole, IMAGES, count)
        return
    before = copy.deepcopy(whole.state_dict())
    small = depth.drop(whole, IMAGES, count)
    assert left(whole, small) == stacks.spaced(count, blocks)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, [0, 2, 5]), (0.34, [0, 2, 5]), (1 / 3, [0, 5]), (0.01, [0])])
def test_a_fraction_is_rounded_up(fraction: float, expected: list[int]) -> None:
    assert left(model(), depth.drop(model(), IMAGES, fraction)) == expected
    assert len(depth.drop(model(), IMAGES, 1.0).blocks) == 6


def weakened() -> VisionTransformer:
    """Return a model whose blocks 1 and 4 do little, and whose block 3 has the smallest weights but one."""
    whole = model()
    for number, size in ((1, 0.01), (4, 0.02)):
        for layer in (whole.blocks[number].attention.out, whole.blocks[number].hidden[2]):  # type: ignore[union-attr,index]
            layer.weight.data *= size
            layer.bias.data.zero_()
        whole.blocks[number].hidden[0].weight.data *= 5  # type: ignore[union-attr,index]
    whole.blocks[3].hidden[0].weight.data *= 0.5  # type: ignore[union-attr,index]
    return whole


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("influence", [0, 2, 3, 5]),
        ("agreement", [0, 2, 3, 5]),
        ("spaced", [0, 2, 3, 5]),
        ("last", [0, 1, 2, 3]),
        ("first", [2, 3, 4, 5]),
    ],
)
def test_blocks_go_in_the_order_that_is_asked_for(order: LayerOrder, expected: list[int]) -> None:
    whole = weakened()
    small = depth.drop(whole, IMAGES, 4, order)
    assert left(whole, small) == expected
    assert left(whole, depth.drop(whole, IMAGES, 4, order)) == expected  # and the same the second time


def test_the_smallest_weights_go_first_by_magnitude() -> None:
    whole = weakened()
    assert 3 not in left(whole, depth.drop(whole, IMAGES, 5, "magnitude"))


def test_influence_is_the_turn_of_the_hidden_state() -> None:
    whole = weakened()
    (stack,) = stacks.find(whole, IMAGES[:1]).stacks
    influences = depth.influences(whole, [stack], IMAGES)[stack]
    with evaluating(whole):
        x = whole.patches(IMAGES).flatten(2).transpose(1, 2) + whole.positions.weight
        for block, influence in zip(whole.blocks, influences, strict=True):
            y = block(x)
            assert influence == pytest.approx(1 - float(nn.functional.cosine_similarity(x, y, dim=-1).mean()), abs=1e-6)
            x = y
    assert set(sorted(range(6), key=influences.__getitem__)[:2]) == {1, 4}


class Masked(Looped):
    """A model of sequences with padding."""

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        states = torch.stack([ids, ids**2 % 7, *[ids % k for k in range(2, 8)]], dim=-1).float()
        return super().forward(states)


def test_padding_has_no_influence() -> None:
    torch.manual_seed(0)
    masked = Masked(3)
    batch = {"ids": torch.randint(1, 50, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    longer = {
        "ids": torch.cat([batch["ids"], torch.full((4, 3), 99)], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(4, 3, dtype=torch.int64)], dim=1),
    }
    (stack,) = stacks.find(masked, inputs.first(batch)).stacks
    alone, padded = (depth.influences(masked, [stack], part)[stack] for part in (batch, longer))
    assert alone == pytest.approx(padded, abs=1e-6)


def test_a_model_without_blocks_that_may_go_is_told_why() -> None:
    with pytest.raises(NoStack, match="a Sequential has no blocks that may be dropped"):
        depth.drop(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), 0.5)
    with pytest.raises(NoStack, match="Lists that stay whole: down: .*; up: "):
        depth.drop(UNet(), torch.rand(1, 3, 8), 0.5)


def test_a_gap_in_the_blocks_is_refused() -> None:
    torch.manual_seed(0)
    shapes = {name: shape for name, shape in architecture.shapes(Looped(4)).items() if not name.startswith("layers.1.")}
    with pytest.raises(architecture.ArchitectureError, match="no shape for .*layers.1"):
        architecture.shrink(Looped(4), shapes)


# ---- models of a library -----------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40,
    "max_position_embeddings": 32,
}  # fmt: skip
WORDS = {
    "input_ids": torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
}
PICTURES = {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
BOTH = {**WORDS, "decoder_input_ids": WORDS["input_ids"]}
FAMILIES = {
    "BertModel": (SIZES, WORDS),
    "RobertaForSequenceClassification": (SIZES, WORDS),
    "DistilBertModel": ({"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40}, WORDS),
    "GPT2LMHeadModel": (
        {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2},
        WORDS,
    ),
    "OPTForCausalLM": ({**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}, WORDS),
    "GPTNeoXForCausalLM": (SIZES, WORDS),
    "LlamaForCausalLM": ({**SIZES, "num_key_value_heads": 1}, WORDS),
    "Gemma2ForCausalLM": ({**SIZES, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}, WORDS),
    "T5ForConditionalGeneration": (
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 4, "num_heads": 2, "vocab_size": 40},
        BOTH,
    ),
    "BartModel": (
        {"d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 2, "vocab_size": 40,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32},
        BOTH,
    ),
    "ViTModel": ({**SIZES, "image_size": 16, "patch_size": 8}, PICTURES),
    "SwinModel": (
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "window_size": 2},
        PICTURES,
    ),
}  # fmt: skip


OF_THE_LIBRARY = pytest.mark.filterwarnings("ignore")  # its own, and those of what it imports


def of_library(name: str, seed: int = 0) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: the extra `text-models`")
    kind = getattr(transformers, name)
    torch.manual_seed(seed)
    made: nn.Module = kind(kind.config_class(**FAMILIES[name][0]))
    return made.eval()


@OF_THE_LIBRARY
@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_a_library_can_be_dropped(name: str) -> None:
    whole, batch = of_library(name), FAMILIES[name][1]
    found = stacks.find(whole, batch).stacks
    assert found
    for kept in ([0], [1]):
        small = stacks.keep(whole, {stack: kept for stack in found})
        stacks.require_same(whole, small, {stack: kept for stack in found}, batch)
        fresh = of_library(name, seed=1)
        architecture.shrink(fresh, architecture.shapes(small))
        fresh.load_state_dict(small.state_dict())
        with evaluating(small), evaluating(fresh):
            answers = [outputs.tensors(inputs.call(each, batch)) for each in (small, fresh)]
        assert all(map(torch.equal, *answers))


@OF_THE_LIBRARY
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_a_model_without_its_first_layer_still_writes(name: str) -> None:
    """Caches are numbered by layer: with a gap at the start a decoder would not know how far it is."""
    whole = of_library(name)
    found = stacks.find(whole, FAMILIES[name][1]).stacks
    small = stacks.keep(whole, {stack: [1, 3] for stack in found})
    prompt = {"input_ids": WORDS["input_ids"][:1], "attention_mask": WORDS["attention_mask"][:1]}
    written = [
        small.generate(
            **prompt,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
        for cached in (True, False)
    ]
    assert torch.equal(*written)
