"""Evaluation is a mean over examples; splits that leak or do not fit are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.task import (
    DeviceError,
    Examples,
    Splits,
    Task,
    check_splits,
    disjoint,
    evaluate,
)


class Rows(Task):
    """Ten numbers, of which the model's sign is asked."""

    name = "rows"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

    def data(self) -> Splits:
        inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        parts = [Examples(inputs[i : i + 10], (inputs[i : i + 10].sum(1) > 0).long()) for i in range(0, 40, 10)]
        return Splits(*parts)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluation_does_not_depend_on_the_batches(batch_size: int) -> None:
    task = Rows()
    torch.manual_seed(0)
    model, examples = task.model(), task.data().train
    with torch.no_grad():
        outputs = model.eval()(examples.inputs)
    expected = nn.functional.cross_entropy(outputs, examples.targets)

    found = evaluate(model, task, examples, batch_size=batch_size)

    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.accuracy == float((outputs.argmax(1) == examples.targets).float().mean())
    assert found.count == 10


class Places(Task):
    """At each of three places the sign of a number; right from 0.5 on, so that accuracy and loss differ."""

    name = "places"

    def model(self) -> nn.Module:
        return nn.Identity()

    def data(self) -> Splits:
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs >= 0.5) == (targets == 1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_place_of_a_sequence_is_an_answer(batch_size: int) -> None:
    inputs = torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.2, 0.2], [0.7, 0.4, 0.8]])
    targets = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    found = evaluate(nn.Identity(), Places(), Examples(inputs, targets), batch_size=batch_size)
    assert (found.accuracy, found.count) == (pytest.approx(7 / 9), 3)
    assert found.loss == pytest.approx(float((inputs - targets).square().mean()))


class Remembers(nn.Linear):
    """Writes what it is asked into itself, as a model with a hidden state may."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked = inputs
        return super().forward(self.asked)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_evaluation_is_the_same_on_any_number_of_threads(threads: int) -> None:
    class Many(Task):
        name = "many"

        def model(self) -> nn.Module:
            return Remembers(20, 5)

        def data(self) -> Splits:
            raise NotImplementedError

    draw, before = torch.Generator().manual_seed(1), torch.get_num_threads()
    examples = Examples(torch.randn(1300, 20, generator=draw), torch.randint(5, (1300,), generator=draw))
    model = Many().model()
    with torch.no_grad():
        outputs = model(examples.inputs)
    expected = int((outputs.argmax(dim=1) == examples.targets).sum()) / 1300
    torch.set_num_threads(1)
    once = evaluate(model, Many(), examples)
    torch.set_num_threads(threads)
    try:
        assert evaluate(model, Many(), examples) == once
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert once.accuracy == expected


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model = Rows().model().train()
    model[1].eval()  # a layer that a user froze
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    evaluate(model, Rows(), Rows().data().train)

    assert [module.training for module in model] == [True, False, True, True] and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_of_nothing_is_refused() -> None:
    nothing = Rows().data().train.take(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="0 examples"):
        evaluate(Rows().model(), Rows(), nothing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        evaluate(Rows().model(), Rows(), Rows().data().test, device="cuda")


def test_good_splits_pass_untouched() -> None:
    splits, before = Rows().data(), Rows().data()
    check_splits(splits)
    assert all(
        torch.equal(a, b) for part, old in zip(splits, before, strict=True) for a, b in zip(part, old, strict=True)
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda part: Examples(part.inputs[:9], part.targets), "9 inputs but 10 targets"),
        (lambda part: part.take(np.array([], dtype=np.int64)), "0 examples"),
        (lambda part: Examples(part.inputs.double(), part.targets), "float64"),
        (lambda part: Examples(part.inputs[:, :2], part.targets), r"\(2,\)"),
        (lambda part: Examples(part.inputs, part.targets.int()), "int32"),
    ],
)
def test_splits_that_do_not_fit_are_refused(spoil, message) -> None:
    splits = Rows().data()
    with pytest.raises(ValueError, match=message):
        check_splits(splits._replace(proxy=spoil(splits.proxy)))


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=3))
def test_parts_of_a_permutation_are_disjoint_and_no_index_can_be_added_twice(order: list[int], cuts: list[int]) -> None:
    parts = np.split(np.array(order), sorted(cuts))
    disjoint(*parts)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 12  # what disjoint parts of a whole are
    with pytest.raises(ValueError, match=f"share 1 example, the first is {order[0]}:"):
        disjoint(*parts, np.array([order[0]]))


@given(st.sets(st.integers(0, 50), min_size=1), st.data())
def test_a_shared_index_is_found(indices: set[int], data: st.DataObject) -> None:
    leaked = data.draw(st.sampled_from(sorted(indices)))
    with pytest.raises(ValueError, match=f"share 1 example, the first is {leaked}"):
        disjoint(np.array(sorted(indices)), np.arange(100, 110), np.array([leaked, 99]))


def test_an_index_twice_in_one_set_is_found() -> None:
    with pytest.raises(ValueError, match="index set 1 holds an index twice"):
        disjoint(np.array([0]), np.array([1, 1]))
