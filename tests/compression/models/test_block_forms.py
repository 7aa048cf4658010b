"""What may take whose place: of equal form, in the shortest period, and nothing that shares its weights."""

from collections.abc import Callable

import pytest
from tests.apps.stacked import Looped, Narrowing, Residual, Sliding, Windowed
from torch import nn

from fedpress.compression.models import block_forms
from fedpress.compression.models.block_forms import Run


class First(Residual):
    """A block with a table of its own, as T5's first one."""

    def __init__(self, width: int, own: bool) -> None:
        super().__init__(width)
        self.owns = own
        if own:
            self.table = nn.Embedding(4, 2)


class Numbered(nn.Module):
    """A block that knows its place."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.name, self.body = number, "block", Residual(8)


def sequence(*blocks: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*blocks)


@pytest.mark.parametrize(
    ("make", "path", "expected"),
    [
        (lambda: Looped(4), "layers", [Run(0, 1, 4, 4)]),
        (lambda: Sliding(7), "layers", [Run(0, 2, 3, 7)]),  # the last one is less than a unit
        (Narrowing, "", [Run(1, 1, 3, 4)]),
        (sequence(*(First(8, number == 0) for number in range(3))), "", [Run(0, 1, 3, 3)]),
        (sequence(First(8, False), First(8, True)), "", []),  # the second has what the first has no place for
        (sequence(*map(Numbered, range(3))), "", [Run(0, 1, 3, 3)]),
        (sequence(*map(Numbered, (0, 2, 5))), "", []),  # numbers that are not the place
        (sequence(Windowed(None), Windowed(2)), "", []),
        (sequence(Residual(8), Residual(6)), "", []),
        (sequence(Residual(8), Residual(8), Residual(6), Residual(6)), "", [Run(0, 1, 2, 2), Run(2, 1, 2, 4)]),
        (lambda: nn.ModuleList([Residual(8), Residual(8), Residual(6)]), "", []),  # a list can lose its end only
    ],
)
def test_runs_of_lists(make: Callable[[], nn.Module], path: str, expected: list[Run]) -> None:
    assert block_forms.runs(make(), path) == expected


def test_blocks_that_share_weights_with_others_stay() -> None:
    model = nn.Sequential(*(Residual(8) for _ in range(4)))
    model[1].layer.weight = model[0].layer.weight
    assert block_forms.runs(model, "") == [Run(2, 1, 2, 4)]
    outer = nn.ModuleDict({"blocks": nn.Sequential(*(Residual(8) for _ in range(2))), "head": nn.Linear(8, 8)})
    assert block_forms.runs(outer, "blocks") == [Run(0, 1, 2, 2)]
    outer["head"].weight = outer["blocks"][1].layer.weight  # type: ignore[index,union-attr]
    assert block_forms.runs(outer, "blocks") == []


def test_fractions_are_left_to_the_trial() -> None:
    blocks = [Residual(8) for _ in range(3)]
    for number, block in enumerate(blocks):
        block.rate = 0.1 * number  # such as stochastic depth
    assert block_forms.runs(nn.Sequential(*blocks), "") == [Run(0, 1, 3, 3)]
    for block, mode in zip(blocks, ("wide", "narrow", "wide"), strict=True):
        block.mode = mode
    assert block_forms.runs(nn.Sequential(*blocks), "") == []
