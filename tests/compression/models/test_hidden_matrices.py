"""Hidden matrices: what they are, the graph of a forward pass tells, whatever the model's classes."""

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import hidden_matrices
from fedpress.compression.models.transformer import CausalTransformer


def weights(model: nn.Module, batch: Tensor) -> set[str]:
    """Return the hidden ones among the weights with two dimensions or more."""
    return set(hidden_matrices.names(model, lambda: model(batch).square().sum()))


def test_convolutions_and_linear_layers_between_the_first_and_the_last() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 6),
        nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert weights(model, torch.rand(1, 3, 8, 8)) == {"3.weight", "5.weight"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_attention_of_torch_and_of_the_house() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 9)
    )
    parts = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    ids = torch.tensor([[1, 2, 3]])
    assert weights(model, ids) == {f"1.layers.0.{part}" for part in parts}
    own = CausalTransformer(9, 8, width=8, depth=2, heads=2, hidden=16)
    matrices = {name for name, p in own.named_parameters() if p.ndim == 2}
    assert weights(own, ids[:, :2]) and weights(own, ids[:, :2]) < matrices


class Tied(nn.Module):
    """A head with the embedding's weight, and a matrix whose last use is the output itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(ids)))  # type: ignore[no-any-return]


def test_a_weight_that_is_an_embedding_or_a_last_layer_besides_is_none() -> None:
    assert weights(Tied(), torch.tensor([[1, 2]])) == {"inner.weight"}
    shared = nn.Linear(4, 4)
    assert weights(nn.Sequential(nn.Linear(2, 4), shared, nn.ReLU(), shared), torch.rand(1, 2)) == set()
    assert weights(nn.Sequential(nn.Linear(2, 4), shared, shared, nn.Linear(4, 1)), torch.rand(1, 2)) == {"1.weight"}


def test_frozen_layers_count_for_what_is_hidden_and_are_not_named() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    for index in (0, 2, 3):
        model[index].requires_grad_(False)
    assert weights(model, torch.rand(1, 2)) == {"1.weight"}
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, False, False, False, False]
    assert weights(model.requires_grad_(False), torch.rand(1, 2)) == set()


def test_a_model_of_one_or_two_layers_has_none() -> None:
    assert weights(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.rand(1, 2)) == set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "opt"])
def test_of_hugging_face_all_but_embeddings_and_heads(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra text-models")
    sizes = {
        "bert": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16},
        "gpt2": {"n_layer": 1, "n_embd": 8, "n_head": 2},
        "llama": {
            "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 16,
        },
        "t5": {"num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "decoder_start_token_id": 0},
        "opt": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_dim": 16,
                "word_embed_proj_dim": 8, "max_position_embeddings": 20},
    }  # fmt: skip
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    configuration = transformers.AutoConfig.for_model(family, vocab_size=30, **sizes[family], **special)
    of_kind = {"bert": transformers.AutoModelForSequenceClassification, "t5": transformers.AutoModelForSeq2SeqLM}
    torch.manual_seed(0)
    model = of_kind.get(family, transformers.AutoModelForCausalLM).from_config(configuration)
    ids = torch.tensor([[2, 3, 4]])
    batch = {"input_ids": ids, **({"decoder_input_ids": ids} if family == "t5" else {})}
    found = hidden_matrices.names(model, lambda: model(**batch).logits.square().sum())
    others = {name for name, p in model.named_parameters() if p.ndim > 1} - found
    words = ("embed", "wte", "wpe", "shared", "relative_attention_bias", "lm_head", "classifier")
    assert found and all(any(word in name for word in words) for name in others), others
    assert not any(word in name for name in found for word in words)
