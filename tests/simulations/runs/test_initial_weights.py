"""A file of initial weights is used whole or not at all; what cannot be trained is refused before the first round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.apps import lazily
from torch import Tensor, nn

from fedpress.simulations.runs import initial_weights
from fedpress.simulations.runs.initial_weights import InitialWeightsError

peft = lazily.loaded("peft")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def written(path: Path, change: Callable[[dict[str, Tensor]], object] = lambda state: None) -> Path:
    """Write the weights of another model of the same architecture, after a change."""
    torch.manual_seed(7)
    state = net().state_dict()
    change(state)
    save_file(state, path / "init.safetensors")
    return path / "init.safetensors"


def test_weights_and_buffers_are_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, lambda state: state.update({"1.running_mean": torch.arange(4.0)}))
    model = net()
    initial_weights.load(model, path)
    torch.manual_seed(7)
    expected = net().state_dict() | {"1.running_mean": torch.arange(4.0)}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("2.bias"), r"1 of its 9 tensors are missing: '2.bias'"),
    "left over": (lambda s: s.update(extra=torch.ones(1)), r"1 of the file's 10 tensors are unknown: 'extra'"),
    "misspelt": (lambda s: s.update({"2.biass": s.pop("2.bias")}), r"did you mean '2.bias' by '2.biass'\?"),
    "shape": (lambda s: s.update({"0.bias": torch.ones(5)}), r"'0.bias' has shape \(5,\), the model's has \(4,\)"),
    "kind": (
        lambda s: s.update({"0.bias": torch.ones(4, dtype=torch.int64)}),
        r"'0.bias' is int64, the model's is flo",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_another_model_is_refused_and_nothing_is_filled_in_part(name: str, tmp_path: Path) -> None:
    change, expected = CHANGES[name]
    path, model = written(tmp_path, change), net()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(InitialWeightsError, match=expected):
        initial_weights.load(model, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(net().state_dict(), path)
    with pytest.raises(InitialWeightsError, match=r"a zip file, as torch.save .*safetensors.torch.save_file\(torch"):
        initial_weights.load(net(), path)
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InitialWeightsError, match=r"a pickle, .*weights_only=True"):
        initial_weights.load(net(), path)


@given(data=st.binary(max_size=60))
def test_any_other_file_is_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "init.safetensors"
    path.write_bytes(data)
    with pytest.raises(InitialWeightsError, match="^init: "):
        initial_weights.load(net(), path)


def test_a_folder_or_no_file_is_refused(tmp_path: Path) -> None:
    for path, expected in ((tmp_path, "holds no safetensors file"), (tmp_path / "absent", "there is no file")):
        with pytest.raises(InitialWeightsError, match=expected):
            initial_weights.load(net(), path)


def test_another_precision_is_converted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, model = written(tmp_path, lambda s: s.update({"0.weight": s["0.weight"].half()})), net()
    with caplog.at_level(logging.INFO, "flwr"):
        initial_weights.load(model, path)
    assert "1 tensors are converted from float16 to float32: '0.weight'" in caplog.text
    assert model[0].weight.dtype == torch.float32
    path = written(tmp_path, lambda s: s.update({"1.num_batches_tracked": torch.tensor(3, dtype=torch.int32)}))
    initial_weights.load(model, path)
    assert model[1].num_batches_tracked == 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("names", [["first.weight"], ["second.weight"], ["first.weight", "second.weight"]])
def test_of_tied_tensors_the_file_holds_one_or_equal_ones(names: list[str], tmp_path: Path) -> None:
    path, model = tmp_path / "init.safetensors", Tied()
    save_file({name: torch.full((2, 2), 3.0) for name in names}, path)
    initial_weights.load(model, path)
    assert (model.second.weight == 3).all() and model.second.weight is model.first.weight


def test_tied_tensors_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    save_file({"first.weight": torch.ones(2, 2), "second.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(InitialWeightsError, match="differ, and are one tensor in the model"):
        initial_weights.load(Tied(), path)


def test_what_is_not_finite_is_refused() -> None:
    for value in (np.nan, np.inf):
        broken = net()
        broken[0].weight.data[1, 1] = value
        with pytest.raises(InitialWeightsError, match=r"NaN or infinity in '0.weight'"):
            initial_weights.check(broken, "mine")
    broken = net()
    broken[1].running_var[0] = np.nan
    with pytest.raises(InitialWeightsError, match="'1.running_var'"):
        initial_weights.check(broken, "mine")
    constant = net()
    constant.register_buffer("mask", torch.full((3,), -np.inf))  # never changes, such as a mask of attention
    initial_weights.check(constant, "mine")


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(InitialWeightsError, match="no parameter that is trained: all 6 have requires_grad=False"):
        initial_weights.check(net().requires_grad_(False), "mine")


def test_a_dtype_that_messages_do_not_carry_is_refused_and_one_that_is_rounded_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InitialWeightsError, match=r"bfloat16 in its model\(\), .* return model.float\(\)"):
        initial_weights.check(net().bfloat16(), "mine")
    turning = net()
    turning.register_buffer("phases", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(InitialWeightsError, match=r"complex64 in its model\(\), .*'phases'; a constant is"):
        initial_weights.check(turning, "mine")
    initial_weights.check(net().half(), "mine")
    with caplog.at_level(logging.WARNING, "flwr"):
        initial_weights.check(net().double(), "mine")
    assert "rounded to float32" in caplog.text
    wide = net().double()
    wide[0].weight.data[0, 0] = 1e300
    with pytest.raises(InitialWeightsError, match="beyond the range of float32"):
        initial_weights.check(wide, "mine")


@lazily.NEEDS_TEXT_MODELS
@pytest.mark.parametrize(
    ("options", "loaded_before", "right"),
    [
        ({}, False, True),
        ({"use_dora": True}, False, False),
        ({"use_dora": True}, True, True),
        ({"init_lora_weights": "pissa"}, False, False),
        ({"init_lora_weights": "pissa"}, True, False),
        ({"init_lora_weights": False}, False, True),
    ],
)
def test_adapters_that_are_made_of_the_weights_need_those_of_the_base(
    options: dict[str, Any], loaded_before: bool, right: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Upon its base a model with new adapters answers as the base does; where it would not, that is said."""
    path = written(tmp_path)
    torch.manual_seed(7)
    pretrained = net().eval()
    torch.manual_seed(8)
    begun = net()
    if loaded_before:
        begun.load_state_dict(pretrained.state_dict())
    model = peft.get_peft_model(begun, peft.LoraConfig(r=2, target_modules=["0", "2"], **options)).eval()
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    if not right:
        with pytest.raises(InitialWeightsError, match=r"base: the adapters of .*\.0'.* were made of other weights"):
            initial_weights.load_base(model, path, None)
        return
    initial_weights.load_base(model, path, None)
    noise = "init_lora_weights" in options
    assert torch.allclose(model(rows), pretrained(rows), atol=1e-6) != noise
    assert ("are not 0 at first" in caplog.text) == noise


class Versioned(nn.Linear):
    """Keeps something else than tensors in its state."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 2}


def test_a_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(InitialWeightsError, match=r"'_extra_state' in state_dict\(\) .* is no tensor"):
        initial_weights.check(Versioned(3, 2), "mine")
