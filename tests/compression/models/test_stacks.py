"""Blocks that may be dropped are found in models of any make, and what is dropped leaves the rest as it was."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps.stacked import Bordered, Counted, InPlace, Lists, Looped, Narrowing, Parallel, Residual, Sliding, UNet
from torch import Tensor, nn

from fedpress.compression.models import architecture, stacks
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.stacks import NoStack, Stack

SEQUENCES = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))


def answers(model: nn.Module, batch: Tensor = SEQUENCES) -> Tensor:
    with evaluating(model):
        return model(batch)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[Stack]]] = {
    "a list": (lambda: Looped(4), [Stack("layers", 0, 1, 4, 4)]),
    "a sequence": (lambda: nn.Sequential(*(Residual(8) for _ in range(3))), [Stack("", 0, 1, 3, 3)]),
    "an ordered dictionary": (
        lambda: nn.Sequential(OrderedDict((f"encoder_layer_{i}", Residual(8)) for i in range(3))),
        [Stack("", 0, 1, 3, 3)],
    ),
    "blocks that write into their input": (
        lambda: nn.Sequential(nn.Linear(8, 8), *(InPlace(8) for _ in range(3))),
        [Stack("", 1, 1, 3, 4)],
    ),
    "blocks of blocks": (
        lambda: nn.Sequential(*(nn.Sequential(*(Residual(8) for _ in range(2))) for _ in range(3))),
        [Stack("", 0, 1, 3, 3)],
    ),
    "a number of blocks": (lambda: Counted(4), [Stack("layers", 0, 1, 4, 4)]),
    "pairs of parts that are added outside": (lambda: Lists(4), [Stack("layers", 0, 1, 4, 4, adds=True)]),
    "tuples and keyword arguments": (lambda: Bordered(4), [Stack("layers", 0, 1, 4, 4)]),
    "two kinds that alternate": (lambda: Sliding(6), [Stack("layers", 0, 2, 3, 6)]),
    "a run with others behind it": (lambda: Narrowing(), [Stack("", 1, 1, 3, 4)]),
    "torch's encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 3),
        [Stack("layers", 0, 1, 3, 3)],
    ),
}


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name][0]().eval()


@pytest.mark.parametrize("name", MODELS)
def test_stacks_are_found(name: str) -> None:
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    assert list(stacks.find(model, SEQUENCES).stacks) == MODELS[name][1]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.data())
def test_any_units_may_stay_and_a_fresh_model_is_cut_to_them(name: str, data: st.DataObject) -> None:
    model = made(name)
    (stack,) = stacks.find(model, SEQUENCES).stacks
    units = data.draw(st.sets(st.integers(0, stack.units - 1), min_size=1))
    small = stacks.keep(model, {stack: units})
    with stacks.silenced(model, {stack: set(range(stack.units)) - units}):
        expected = answers(model)
    assert torch.equal(answers(small), expected)
    stacks.require_same(model, small, {stack: units}, SEQUENCES)
    fresh = made(name, seed=1)  # as a client makes it: from the shapes alone
    architecture.shrink(fresh, architecture.shapes(small))
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(answers(fresh), expected)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert len(units) == stack.units or sum(parameter.numel() for parameter in small.parameters()) < size


@pytest.mark.parametrize("name", MODELS)
def test_what_does_nothing_goes_without_a_trace(name: str) -> None:
    """A block that a trained model has silenced is dropped, and every output stays as it was."""
    model = made(name)
    (stack,) = stacks.find(model, SEQUENCES).stacks
    if name == "torch's encoder":
        pytest.skip("its norms are behind the sums, so that no weights silence a block")
    for place in stack.places(1):
        block = list(model.get_submodule(stack.path).children())[place]
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    whole = answers(model)
    units = set(range(stack.units)) - {1}
    assert torch.equal(answers(stacks.keep(model, {stack: units})), whole)
    assert not torch.equal(answers(stacks.keep(model, {stack: {1}})), whole)


@pytest.mark.parametrize(
    ("model", "path", "reason"),
    [
        (UNet, "down", "does not run"),
        (UNet, "up", "answers otherwise"),
        (lambda: Parallel(3), "first", "answers otherwise"),
        (lambda: nn.Sequential(*[Residual(8)] * 3), "", ""),  # one block, three times
        (lambda: Looped(1), "", ""),
    ],
)
def test_blocks_that_others_count_on_stay_with_a_reason(model: Callable[[], nn.Module], path: str, reason: str) -> None:
    found = stacks.find(model().eval(), SEQUENCES)
    assert found.stacks == () and reason in found.whole.get(path, "")
    assert not reason or f"{path}: " in found.explained()


def test_numbers_of_blocks_follow_and_a_shared_configuration_is_left_alone() -> None:
    settings = {"depth": 4, "heads": 4}
    model, other = Counted(4, settings), Counted(4, settings)
    (stack,) = stacks.find(model, SEQUENCES).stacks
    small = stacks.keep(model, {stack: [0, 2]})
    assert small.settings == {"depth": 2, "heads": 4} and model.settings == other.settings == settings
    fresh = Counted(4, settings)
    architecture.shrink(fresh, architecture.shapes(small))
    assert fresh.settings["depth"] == 2 and settings["depth"] == 4


def test_shapes_that_fit_no_cut_leave_the_model_as_it_was() -> None:
    model, shapes = Counted(4), architecture.shapes(stacks.keep(Counted(4), {Stack("layers", 0, 1, 4, 4): [0]}))
    with pytest.raises(architecture.ArchitectureError, match="other"):
        architecture.shrink(model, shapes | {"other": (1,)})
    assert len(model.layers) == 4 and model.settings["depth"] == 4 and answers(model).shape == SEQUENCES.shape


def test_units_of_another_stack_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers: got units \[7\], expected at least one out of 4"):
        stacks.keep(Looped(4), {Stack("layers", 0, 1, 4, 4): [7]})


def test_a_model_that_answers_otherwise_is_refused() -> None:
    model, stack = Looped(4), Stack("layers", 0, 1, 4, 4)
    wrong = stacks.keep(model, {stack: [0, 1]})
    with pytest.raises(NoStack, match="blocks of layers cannot be dropped"):
        stacks.require_same(model, wrong, {stack: [2, 3]}, SEQUENCES)


def test_states_before_and_after_each_block_are_those_that_it_saw() -> None:
    for name in ("a list", "blocks of blocks", "pairs of parts that are added outside", "tuples and keyword arguments"):
        model = made(name)
        found = stacks.find(model, SEQUENCES).stacks
        with stacks.watching(model, found) as states:
            output = answers(model)
        pairs: Sequence[tuple[Tensor, Tensor]] = states[found[0]]
        assert torch.equal(pairs[0][0], SEQUENCES)
        for (_, after), (before, _) in zip(pairs, pairs[1:], strict=False):
            assert torch.equal(after, before)
        torch.testing.assert_close(pairs[-1][1], output)
