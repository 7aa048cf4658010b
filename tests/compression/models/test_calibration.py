"""Moments are those of the inputs that a weight really multiplies, whatever the layer is and however it stores it."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture, calibration
from fedpress.compression.models.calibration import Reached, Site


def seen(model: nn.Module, inputs: Any) -> tuple[dict[Site, tuple[Tensor, Tensor]], Reached]:
    """Return weight and moments of each site."""
    found: dict[Site, tuple[Tensor, Tensor]] = {}
    reached = calibration.calibrate(
        model, inputs, lambda site, weight, moments: found.update({site: (weight.clone(), moments)})
    )
    return found, reached


@settings(max_examples=30, deadline=None)
@given(
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_outputs_of_a_convolution_have_the_moments_that_follow(
    axes: int, groups: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(4, 8, kernel, stride, padding, dilation, groups, bias=False)
    inputs = torch.randn(3, 4, *[6] * axes)
    ((weight, moments),) = seen(layer, inputs)[0].values()
    outputs = layer(inputs).detach().transpose(0, 1).reshape(groups, 8 // groups, -1).double()
    expected = outputs @ outputs.transpose(1, 2) / outputs.shape[2]
    torch.testing.assert_close(
        weight.double() @ moments @ weight.double().transpose(1, 2), expected, rtol=1e-4, atol=1e-5
    )


class Bare(nn.Module):
    """Weights without layers: (outputs, inputs), (inputs, outputs), on the left, a slice, one for each of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns, self.left = (nn.Parameter(torch.randn(5, 5)) for _ in range(3))
        self.packed, self.heads = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(2, 5, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs @ self.rows.T
        second = first @ self.columns
        third = (self.left @ second.reshape(-1, 5).T).T
        fourth = third @ self.packed[5:].T
        return torch.bmm(fourth.expand(2, -1, -1), self.heads)


def test_bare_parameters_are_found_in_the_orientation_of_their_use() -> None:
    torch.manual_seed(0)
    model, inputs = Bare(), torch.randn(4, 3, 5)
    found, reached = seen(model, inputs)
    assert reached.multiplied == ("rows", "columns", "left", "packed", "heads") and not reached.unreached
    rows = inputs.reshape(-1, 5).double()
    weights = [model.rows, model.columns.T, model.left, model.packed[5:]]
    sites = list(found)
    for site, weight in zip(sites, weights, strict=False):
        torch.testing.assert_close(site.matrix(getattr(model, site.name).detach())[0], weight.detach())
        torch.testing.assert_close(found[site][1][0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
        rows = rows @ weight.detach().double().T
    assert sites[4].size == (2, 3, 5)
    assert torch.equal(sites[4].matrix(model.heads.detach()), model.heads.detach().transpose(1, 2))
    assert sites[3].offset == 25


def test_later_layers_are_calibrated_on_the_changed_ones_before_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs, moments = torch.randn(9, 3), {}

    def visit(site: Site, weight: Tensor, of_inputs: Tensor) -> None:
        moments[site.name] = of_inputs
        weight.mul_(2)

    before = copy.deepcopy(model.state_dict())
    calibration.calibrate(model, inputs, visit)
    assert torch.equal(model[2].weight, 2 * before["2.weight"]) and torch.equal(model[2].bias, before["2.bias"])
    hidden = torch.relu(model[0](inputs)).detach().double()
    torch.testing.assert_close(moments["2.weight"][0], hidden.T @ hidden / 9, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_used_twice_is_visited_once_with_the_inputs_of_both() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    found, _ = seen(nn.Sequential(layer, layer), torch.ones(1, 1))
    ((_, moments),) = found.values()
    assert moments.item() == (1 + 4) / 2


class Words(nn.Module):
    """A transformer's outline: embeddings tied to the output, rows example by example or place by place."""

    def __init__(self, by_place: bool) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.by_place = by_place
        self.most = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        hidden = self.layer(hidden.transpose(0, 1)).transpose(0, 1) if self.by_place else self.layer(hidden)
        if input_ids.shape[0] > 2:
            self.most = len(input_ids)  # comes after the last layer that is visited
        output: Tensor = self.head(hidden)
        return output


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("length", [3, 4, 5])
def test_padded_places_are_left_out_in_either_order(by_place: bool, length: int) -> None:
    torch.manual_seed(0)
    model = Words(by_place).train()
    words = torch.randint(1, 7, (length, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 0]])[:length]
    found, reached = seen(model, {"input_ids": words, "attention_mask": mask})
    assert reached == Reached(("layer.weight",), ("embedding.weight",), (), length)
    ((_, moments),) = found.values()
    rows = model.embedding(words)[mask.bool()].detach().double()
    torch.testing.assert_close(moments[0], rows.T @ rows / len(rows))
    assert model.most == 0 and model.training  # the pass ends at the last visit


def test_a_mask_of_padding_says_the_contrary() -> None:
    class Torchs(Words):
        def forward(self, input_ids: Tensor, padding_mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids, ~padding_mask)

    torch.manual_seed(0)
    model, words = Torchs(False), torch.randint(1, 7, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    ((_, moments),) = seen(model, {"input_ids": words, "padding_mask": ~mask})[0].values()
    rows = model.embedding(words)[mask].detach().double()
    torch.testing.assert_close(moments[0], rows.T @ rows / len(rows))


def test_masks_that_say_nothing_are_ignored() -> None:
    model, words = Words(False), torch.randint(1, 7, (3, 4))
    every = seen(model, {"input_ids": words, "attention_mask": torch.ones(3, 4)})[0]
    for mask in (torch.zeros(3, 4), torch.full((3, 4), 0.5)):
        found = seen(model, {"input_ids": words, "attention_mask": mask})[0]
        assert all(torch.equal(found[site][1], every[site][1]) for site in every)


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False),
        nn.LSTM(8, 4, batch_first=True),
        nn.GRU(8, 4, 2),
        nn.RNN(8, 4),
    ],
    ids=["encoder", "encoder, places first", "lstm", "gru", "rnn"],
)
def test_attention_and_recurrence_are_reached_in_their_parts(model: nn.Module) -> None:
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    found, reached = seen(model.eval(), torch.randn(5, 6, 8))
    assert not reached.unreached
    matrices = [name for name, tensor in architecture.tensors(model).items() if tensor.ndim > 1]
    assert {site.name for site in found} == set(matrices)
    assert torch.backends.mha.get_fastpath_enabled() == fast and torch.backends.mkldnn.enabled == mkldnn


BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", BERT),
    "roberta": ("RobertaModel", BERT),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", BERT),
    "llama": ("LlamaForCausalLM", BERT | {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", BERT | {"num_key_value_heads": 1}),
    "mixtral": ("MixtralForCausalLM", BERT | {"num_key_value_heads": 1, "num_local_experts": 3}),
    "albert": ("AlbertModel", BERT | {"embedding_size": 8}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_these_families_is_reached(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text-models is not installed")
    name, sizes = FAMILIES[family]
    model = getattr(transformers, name)(transformers.AutoConfig.for_model(family, **sizes))
    words = torch.randint(1, 60, (6, 5))
    mask = torch.ones(6, 5, dtype=torch.int64)
    mask[3:, 3:] = 0
    found, reached = seen(model, {"input_ids": words, "attention_mask": mask})
    assert not reached.unreached and reached.looked_up and reached.examples == 6
    assert all(moments.diagonal(dim1=1, dim2=2).sum() > 0 for _, moments in found.values())
    if family == "gpt2":  # (inputs, outputs)
        assert next(site.size for site in found if site.name.endswith("mlp.c_fc.weight")) == (1, 64, 16)
    if family == "mixtral":
        assert next(site.size for site in found if site.name.endswith("experts.down_proj")) == (3, 16, 24)


def test_what_is_not_reached_is_named_and_no_inputs_or_infinite_ones_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].idle = nn.Linear(2, 2)
    assert seen(model, torch.ones(3, 2))[1].unreached == ("0.idle.weight",)
    with pytest.raises(ValueError, match="needs inputs, got none"):
        seen(model, torch.ones(0, 2))
    with pytest.raises(NonFiniteError, match=r"inputs of '0\.weight'"):
        seen(model, torch.full((3, 2), torch.inf))


def test_fewer_examples_are_used_where_activations_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 100), nn.Linear(100, 2), nn.Linear(2, 1000))
    assert seen(model, torch.ones(30, 2))[1].examples == 30
    monkeypatch.setattr(calibration, "MAX_BYTES", 7 * 400)  # what comes after the last weight does not count
    assert seen(model, torch.ones(30, 2))[1].examples == 7


def test_a_weight_within_other_memory_is_unreached_and_said_to_be() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.data = torch.randn(4, 2)[1:3]
    assert seen(model, torch.ones(3, 2))[1][:3] == (("1.weight",), (), ("0.weight",))
