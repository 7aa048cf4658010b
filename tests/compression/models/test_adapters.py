"""A model with adapters becomes a plain one that answers the same, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.apps import lazily
from torch import Tensor, nn

from fedpress.compression.models import adapters

peft, transformers = lazily.loaded("peft"), lazily.loaded("transformers")
pytestmark = lazily.NEEDS_TEXT_MODELS

IDS = torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4))


def llama(**options: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=32, **options,
        )
    )  # fmt: skip


class Convolutions(nn.Module):
    """Without transformers: an embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.convolution = nn.Conv1d(8, 12, 3)
        self.out = nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.convolution(self.words(ids).transpose(1, 2)).mean(dim=2))


class Around(nn.Module):
    """An encoder with adapters as a part of the user's model."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=ids).last_hidden_state.mean(dim=1))


def lora(model: nn.Module, **options: Any) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=3, **options))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "a trained head beside": (bert, lambda m: lora(m, task_type="SEQ_CLS", target_modules=["query", "value"])),
    "Conv1D of GPT-2": (gpt2, lambda m: lora(m, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "all linear layers": (llama, lambda m: lora(m, target_modules="all-linear")),
    "DoRA": (llama, lambda m: lora(m, target_modules=["q_proj", "v_proj"], use_dora=True)),
    "no transformer": (Convolutions, lambda m: lora(m, target_modules=["words", "convolution", "out"])),
    "a part": (lambda: Around(bert().bert), lambda m: (setattr(m, "encoder", lora(m.encoder)), m)[1]),
    "injected": (
        Convolutions,
        lambda m: peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=["convolution", "out"]), m),
    ),
    "LoHa": (Convolutions, lambda m: peft.get_peft_model(m, peft.LoHaConfig(r=3, target_modules=["out"]))),
    "a tied embedding": (
        lambda: llama(tie_word_embeddings=True),
        lambda m: lora(m, target_modules=["embed_tokens", "q_proj"]),
    ),
    "layers that are there twice": (
        llama,
        lambda m: lora(m, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]]),
    ),
    "IA3": (
        llama,
        lambda m: peft.get_peft_model(
            m, peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        ),
    ),
}


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found = model.eval()(IDS)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", CASES)
def test_a_merged_model_is_plain_and_answers_the_same(name: str) -> None:
    make, adapt = CASES[name]
    torch.manual_seed(1)
    plain = make()
    names = list(plain.state_dict())
    model = adapt(plain)
    with torch.no_grad():  # as if they were trained: B of LoRA is zero at first
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    before, trained = answer(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    merged = adapters.merged(model)
    torch.testing.assert_close(answer(merged), before, rtol=1e-3, atol=1e-4)
    assert list(merged.state_dict()) == names or name == "layers that are there twice"
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert model.state_dict().keys() == trained.keys()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in model.state_dict().items())


def test_a_model_without_adapters_is_returned_as_it_is() -> None:
    model = Convolutions().requires_grad_(False)
    assert adapters.merged(model) is model and not any(p.requires_grad for p in model.parameters())


class Own(nn.Module):
    """A layer with adapters of a user's own, which shares two names with peft's."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 4)

    def merge(self) -> Tensor:
        return self.base_layer.weight + self.up.weight @ self.down.weight


def test_adapters_of_another_make_are_parts_of_the_model_as_any_other() -> None:
    model = nn.Sequential(Own())
    assert adapters.merged(model) is model and adapters.adapted(model) == {}


def test_learned_prompts_cannot_be_merged() -> None:
    model = peft.get_peft_model(gpt2(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(adapters.MergeError, match="cannot be merged"):
        adapters.merged(model)


def test_layers_are_altered_by_adapters_that_are_not_zero_at_first() -> None:
    """LoRA's are; those of PiSSA are a part of the weight, which they have changed; DoRA's follow the weight."""

    def found(**options: Any) -> list[str]:
        torch.manual_seed(1)
        model = lora(Convolutions(), target_modules=["convolution", "out"], **options)
        layers = adapters.adapted(model)
        assert [name.rpartition(".")[2] for name in layers] == ["convolution", "out"]
        return [name.rpartition(".")[2] for name in adapters.altered(model, list(layers))]

    assert found() == [] and found(use_dora=True) == []
    assert found(init_lora_weights=False) == ["convolution", "out"]
    model = lora(Convolutions(), target_modules=["out"], init_lora_weights="pissa")
    assert adapters.altered(model, list(adapters.adapted(model))) == ["base_model.model.out"]
    assert adapters.made_of_weights(model) and not adapters.made_of_weights(lora(Convolutions(), target_modules="out"))
