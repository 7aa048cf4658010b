"""Names of pretrained files belong to those of a model by one rule, and weights are read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fedpress.compression.models import pretrained
from fedpress.compression.safetensors_files import INDEX, WeightsError

PARTS = st.text("abcxyz_0", min_size=1, max_size=4).filter(
    lambda part: part not in ("default", "base_layer", "original_module")
)
NAMES = st.lists(st.lists(PARTS, min_size=2, max_size=4).map(".".join), min_size=2, max_size=8, unique=True)


@given(
    NAMES,
    st.sampled_from(["", "encoder.", "base_model.model.", "model.bert.", "a.base_model.model.b.", "module._orig_mod."]),
)
def test_one_prefix_on_either_side_leaves_each_name_its_own(names: list[str], prefix: str) -> None:
    longer = [prefix + name for name in names]
    if set(longer) & set(names) or len({pretrained.plain_name(name) for name in longer}) < len(names):
        return  # names within names: there is more than one reading
    counted = [sum(other.endswith("." + name) for other in names) for name in names]
    if any(counted):
        return
    assert pretrained.matches(longer, names) == dict(zip(longer, names, strict=True))
    assert pretrained.matches(names, longer) == dict(zip(names, longer, strict=True))


def test_adapters_their_base_and_the_file_of_adapters_alone() -> None:
    model = [
        "encoder.base_model.model.layer.0.query.base_layer.weight",
        "encoder.base_model.model.layer.0.query.lora_A.default.weight",
        "encoder.base_model.model.layer.0.output.weight",
        "encoder.base_model.model.head.original_module.weight",
        "encoder.base_model.model.head.modules_to_save.default.weight",
        "out.weight",
    ]
    base = ["layer.0.query.weight", "layer.0.output.weight", "head.weight", "pooler.weight"]
    assert pretrained.matches(model, base) == {
        model[0]: "layer.0.query.weight",
        model[2]: "layer.0.output.weight",
        model[3]: "head.weight",
        model[4]: "head.weight",
    }
    saved = ["base_model.model.layer.0.query.lora_A.weight"]
    assert pretrained.matches(model, saved) == {model[1]: saved[0]}


def test_words_of_peft_may_hold_an_adapters_own_name() -> None:
    model = ["words.token_adapter.base_layer.weight", "head.modules_to_save.mine.weight", "head.original_module.weight"]
    assert pretrained.matches(model, ["words.weight", "head.weight"]) == {
        model[0]: "words.weight", model[1]: "head.weight", model[2]: "head.weight",
    }  # fmt: skip


class Copied(nn.Module):
    """A first and a last layer that are one tensor, and a trained copy of the latter, as peft makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(3, 2), nn.Module()
        self.head.original_module = nn.Linear(2, 3, bias=False)
        self.head.original_module.weight = self.words.weight
        self.head.modules_to_save = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})


def test_a_trained_copy_of_a_tied_layer_is_filled_with_it(tmp_path: Path) -> None:
    """The file has one of the two names, as Hugging Face writes it, and the copy is of the other."""
    words = torch.arange(6.0).reshape(3, 2)
    save_file({"words.weight": words}, tmp_path / "model.safetensors")
    model = Copied()
    pretrained.fill(model, pretrained.Weights(tmp_path))
    assert all(torch.equal(tensor, words) for tensor in model.state_dict().values())


def test_what_is_shared_does_not_depend_on_what_was_trained(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    weights = pretrained.Weights(tmp_path)
    model[0].requires_grad_(False)
    assert pretrained.shared(model, weights) == {"0.weight": "0.weight", "0.bias": "0.bias"}
    with torch.no_grad():
        model[1].weight += 1
        model[0].bias[0] += 1
    assert pretrained.shared(model, weights) == {"0.weight": "0.weight"}


def test_two_towers_are_both_filled_from_one_encoder() -> None:
    model = [f"{tower}.{name}" for tower in ("query", "document") for name in ("word.weight", "out.weight")]
    found = pretrained.matches(model, ["word.weight", "out.weight"])
    assert found == {name: name.partition(".")[2] for name in model}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = net(), nn.Linear(2, 5)


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return net().state_dict()


def test_a_part_is_filled_from_shards_and_the_rest_is_named(tmp_path: Path) -> None:
    tensors = state(3)
    names = list(tensors)
    for number, part in enumerate((names[:4], names[4:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
    weight_map = {name: f"{0 if name in names[:4] else 1}.safetensors" for name in names}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    model = Whole()
    head = model.head.weight.clone()
    filled = pretrained.fill(model, pretrained.Weights(tmp_path))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.encoder.state_dict().items())
    assert filled.left == ["head.weight", "head.bias"] and not filled.unused and torch.equal(model.head.weight, head)


def test_what_does_not_fit_is_refused_before_anything_is_filled(tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(4, 3), "2.weight": torch.ones(3, 4)}, tmp_path / "a.safetensors")
    model, before = net(), state(1)
    model.load_state_dict(before)
    with pytest.raises(WeightsError, match=r"'2.weight' has shape \(3, 4\), the model's has \(2, 4\)"):
        pretrained.fill(model, pretrained.Weights(tmp_path / "a.safetensors"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save_file({"query.kernel": torch.ones(3)}, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="no tensor of this model: it holds 'query.kernel', the model '0.weight'"):
        pretrained.fill(model, pretrained.Weights(tmp_path / "b.safetensors"))
    with pytest.raises(WeightsError, match="two of its files hold a tensor '0.weight'"):
        save_file({"0.weight": torch.ones(4, 3)}, tmp_path / "c.safetensors")
        pretrained.Weights(tmp_path)


def test_the_pointer_of_a_file_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n")
    with pytest.raises(WeightsError, match="the pointer of a file in Git LFS"):
        pretrained.Weights(tmp_path)


def test_adapters_of_another_rank_are_named_by_their_ranks(tmp_path: Path) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A, self.lora_B = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)

    path = tmp_path / "adapter_model.safetensors"
    save_file({"lora_A.weight": torch.ones(4, 6), "lora_B.weight": torch.ones(6, 4)}, path)
    with pytest.raises(WeightsError, match="an adapter of rank 4, expected rank 8"):
        pretrained.fill(Adapted(), pretrained.Weights(path))


@pytest.mark.parametrize(
    "names",
    [
        ["text.word.weight", "image.word.weight"],  # two towers, the model is one of them
        ["word.original_module.weight", "word.modules_to_save.default.weight"],  # a layer beside its trained copy
    ],
)
def test_of_two_parts_that_fit_none_is_guessed(names: list[str]) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(WeightsError, match=f"may be '{order[0]}' or '{order[1]}'"):
            pretrained.matches(["word.weight"], order)
    assert pretrained.matches(["word.weight"], [*names, "word.weight"]) == {"word.weight": "word.weight"}


def test_compiled_parts_have_the_names_that_they_had_before() -> None:
    wanted = ["body.weight", "body.bias", "head.weight", "head.bias"]
    present = ["body._orig_mod.weight", "body._orig_mod.bias", "head.weight", "head.bias"]  # torch.compile(body)
    assert pretrained.matches(wanted, present) == dict(zip(wanted, present, strict=True))
    assert pretrained.matches(present, wanted) == dict(zip(present, wanted, strict=True))
