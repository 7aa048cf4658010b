"""Outputs are those of one batch, whatever the pieces and threads; a model for which they are not is named."""

import copy
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps import texts
from tests.apps.batch_layers import DEPENDENT, Counting, Dropped, Written, inputs, net
from torch import Tensor, nn

from fedpress.compression.models import batch_dependence, forward
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.batch_dependence import BatchDependent
from fedpress.compression.models.outputs import EvaluationError
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.stored import Collated


class Pair(NamedTuple):
    scores: Tensor
    features: Tensor


class Named(OrderedDict[str, Tensor]):
    """Outputs whose entries are attributes, as large libraries of models return them."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


def run(model: nn.Module, given_inputs: Tensor, batch_size: int = 512, threads: int = 1) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with evaluating(model), forward.batches(model, given_inputs, batch_size) as batches:
            parts = list(batches)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    stops = [rows.stop for rows, _, _ in parts]
    assert [rows.start for rows, _, _ in parts] == [0, *stops[:-1]] and stops[-1] == len(given_inputs)
    return model_outputs.joined([outputs for _, outputs, _ in parts])


def at_once(model: nn.Module, given_inputs: Tensor) -> Any:
    with evaluating(model):
        return model(given_inputs)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["plain", "BatchNorm", *DEPENDENT]),
    st.integers(1, 200),
    st.integers(2, 150),
    st.integers(1, 3),
)
def test_outputs_are_those_of_one_batch(kind: str, count: int, batch_size: int, threads: int) -> None:
    middle = {"plain": nn.ReLU, "BatchNorm": lambda: nn.BatchNorm1d(8), **DEPENDENT}[kind]()
    model, some = net(middle), inputs(count)
    if kind == "BatchNorm1d" and count == 1:
        return  # torch itself has no statistics of one input
    torch.testing.assert_close(run(model, some, batch_size, threads), at_once(model, some), rtol=1e-4, atol=1e-4)


def test_a_batch_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(nn.BatchNorm1d(8, track_running_stats=False))
    monkeypatch.setattr(batch_dependence, "WHOLE_BYTES", 3 * 8 * 4 * 100)  # an output of the widest layer, three times
    run(model, inputs(100))
    for check in (run, batch_dependence.require_evaluable):
        with pytest.raises(BatchDependent, match=r"'1' \(BatchNorm1d\).*track_running_stats.*all 101 examples"):
            check(model, inputs(101))
    run(net(nn.ReLU()), inputs(5_000))  # in pieces


@pytest.mark.parametrize("layer", [Dropped, Counting])
def test_answers_that_are_never_the_same_are_refused(layer: type[nn.Module]) -> None:
    for check in (run, batch_dependence.require_evaluable, batch_dependence.require_independent):
        with pytest.raises(BatchDependent, match=rf"'1' \({layer.__name__}\) does not answer the same inputs twice"):
            check(net(layer()), inputs(100))


def test_a_size_of_the_batch_in_the_code_is_an_error_unless_it_is_that_of_all() -> None:
    assert len(run(Written(), torch.ones(64, 5))) == 64
    for count in (65, 130):
        with pytest.raises(EvaluationError, match="does not run on a batch of 12 inputs"):
            run(Written(), torch.ones(count, 5))
    with pytest.raises(BatchDependent, match="runs on a batch of 64 inputs, but not on fewer"):
        batch_dependence.require_independent(Written(), torch.ones(64, 5))


class Squeezing(nn.Module):
    """A single input loses its axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1).squeeze()


@pytest.mark.parametrize("count", [65, 129, 513])
def test_no_piece_is_of_a_single_input(count: int) -> None:
    assert torch.equal(run(Squeezing(), inputs(count)), inputs(count))


class Several(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        parts = {"scores": 2 * x, "features": x.repeat_interleave(3, dim=0)}  # of each input three rows
        if self.kind == "dict":
            return {"parts": parts, 1: x}
        if self.kind == "named":
            return Named(**parts)
        return {"pair": Pair(**parts), "tuple": (2 * x, None, x), "list": [x, x]}[self.kind]


@pytest.mark.parametrize("kind", ["dict", "named", "pair", "tuple", "list"])
def test_outputs_of_several_tensors_keep_their_structure(kind: str) -> None:
    some, model = inputs(150), Several(kind)
    found, expected = run(model, some), model(some)
    assert type(found) is type(expected)
    assert all(map(torch.equal, model_outputs.tensors(found), model_outputs.tensors(expected)))
    halves = model_outputs.mapped(found, lambda tensor: tensor / 2)
    pairs = zip(model_outputs.tensors(halves), model_outputs.tensors(found), strict=True)
    assert all(torch.equal(2 * half, one) for half, one in pairs)


class Auxiliary(nn.Module):
    """A figure of the whole batch beside the answers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.square().mean()


def test_a_figure_of_the_batch_beside_the_answers_is_that_of_all() -> None:
    some = inputs(150)
    answers, mean = run(Auxiliary(), some)
    assert torch.equal(answers, some) and torch.equal(mean, some.square().mean())


def test_what_is_no_tensor_is_refused() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "yes"

    with pytest.raises(EvaluationError, match="returns a str, expected a tensor"):
        run(Text(), inputs(3))


def test_an_error_of_the_model_is_an_error_that_names_it() -> None:
    with pytest.raises(EvaluationError, match="mat1 and mat2"):
        run(net(), torch.ones(100, 6))


def test_the_model_is_left_as_it_was() -> None:
    model = net(nn.BatchNorm1d(8, track_running_stats=False)).train()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    run(model, inputs(70))
    with pytest.raises(BatchDependent):
        batch_dependence.require_independent(model, inputs(70))
    assert [module.training for module in model] == [False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["plain", "places"])
@pytest.mark.parametrize("batch_size", [7, 64, 512])
def test_stored_sequences_have_the_outputs_that_they_have_alone(kind: str, batch_size: int) -> None:
    """Whatever the length to which their batch is padded."""
    task = texts.Texts(kind)
    torch.manual_seed(0)
    model, examples = task.model(), task.data().train
    with evaluating(model), forward.batches(model, examples.inputs, batch_size) as batches:
        for rows, outputs, batch in batches:
            assert len(outputs) == model_inputs.count(batch) == rows.stop - rows.start
            for row in range(rows.start, rows.stop, 20):
                single = model_inputs.take(examples.inputs, torch.tensor([row]))
                alone = model_inputs.call(model, single)[0]
                there = outputs[row - rows.start][..., : alone.shape[-1]]
                assert model_outputs.close(there, alone)


@pytest.mark.parametrize("check", ["batches", "evaluable", "independent"])
def test_a_model_that_attends_to_padding_is_refused(check: str) -> None:
    task = texts.Texts("unmasked")
    torch.manual_seed(0)
    model, inputs = task.model(), task.data().train.inputs
    with pytest.raises(BatchDependent, match=r"\(Pooled\) for example \d+, a sequence of .*padding is attended to"):
        if check == "batches":
            with evaluating(model), forward.batches(model, inputs) as batches:
                list(batches)
        elif check == "evaluable":
            batch_dependence.require_evaluable(model, inputs)
        else:
            batch_dependence.require_independent(model, inputs)
    in_memory = texts.Texts("unmasked", "memory").data().train.inputs  # all padded alike: well defined
    batch_dependence.require_independent(model, in_memory)


def test_padding_on_the_left_is_no_reason() -> None:
    """Where positions do not count from the padding."""

    class Last(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return torch.where(mask.bool(), ids, 0)[..., None].float().cumsum(1)

    def on_the_left(rows: Any) -> dict[str, Tensor]:
        batch = texts.collate(rows, names=("ids", "mask"))
        return {name: part.flip(1) for name, part in batch.items()}

    stored = Collated(texts.drawn(40, seed=0)[0], on_the_left)
    batch_dependence.require_independent(Last(), stored)
    with evaluating(Last()), forward.batches(Last(), stored, 9) as batches:
        assert sum(len(answered.outputs) for answered in batches) == 40


def test_the_length_of_sequences_is_free_where_the_model_takes_others() -> None:
    example = texts.Texts("plain", "memory").data().train.take(slice(0, 2)).inputs

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(example["ids"].shape[1], 3)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.head((ids * mask).float())  # type: ignore[no-any-return]

    assert forward.free_axes(texts.Pooled().eval(), example) == set()
    assert forward.free_axes(texts.Pooled(places=True).eval(), example) == {2}
    assert forward.free_axes(Fixed().eval(), example) is None
    assert forward.free_axes(nn.Identity(), example["ids"]) is None
