"""A trial on fewer rows of tokens finds what one on all of them finds, and takes all where rows are channels."""

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models.pruning import channel_groups, structural, token_rows, trial_copy
from fedpress.compression.models.pruning.channel_removal import Group


class Tagger(nn.Module):
    """Words, looked up in a table, mixed and scored; `tied`: each word, by the table itself."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(3000, 12, padding_idx=2999)
        self.inner, self.outer = nn.Linear(12, 24), nn.Linear(24, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3000 if tied else 5)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (N, L) to scores (N, L, words or classes)."""
        hidden = self.table(ids)
        result: Tensor = self.head(self.norm(hidden + self.outer(self.inner(hidden).relu())))
        return result


class Codebook(nn.Module):
    """A table whose rows a layer chooses from: they are channels, which may go."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.query, self.head = nn.Embedding(1500, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 6) to (N, 3)."""
        chosen = torch.relu(self.query(x) @ self.codes.weight.T) @ self.codes.weight
        result: Tensor = self.head(chosen)
        return result


def members(groups: list[Group]) -> list[tuple[str, int, list[tuple[str, int, list[list[int]]]]]]:
    return [(one.name, one.units, [(m.tensor, m.axis, m.positions.tolist()) for m in one.members]) for one in groups]


@pytest.mark.parametrize("tied", [False, True])
def test_fewer_rows_show_the_same_groups(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = Tagger(tied).eval(), torch.randint(2000, 2999, (2, 6))
    running = trial_copy.running(model, ids, 60)
    assert running.shortened and running.model.get_submodule("table").weight.shape == (trial_copy.ROWS, 12)
    short = members(channel_groups.find(model, ids))
    monkeypatch.setattr(trial_copy, "ROWS", 10_000)
    assert not trial_copy.running(model, ids, 60).shortened
    assert short == members(channel_groups.find(model, ids)) and len(short) == 2
    assert model.table.weight.shape == (3000, 12)


def test_a_vocabulary_that_was_narrowed_before_is_shortened_too() -> None:
    ids = torch.randint(0, 3000, (40, 50), generator=torch.Generator().manual_seed(0))
    model = token_rows.narrowed(Tagger(True).eval(), ids).model
    assert trial_copy.ROWS < len(model.get_submodule("table").weight) < 3000
    assert trial_copy.running(model, ids[:2], 60).shortened >= {"table.weight", "head.weight"}
    assert [one.units for one in channel_groups.find(model, ids[:2])] == [12, 24]


def test_rows_that_are_channels_are_all_tried() -> None:
    model, x = Codebook().eval(), torch.randn(2, 6)
    (group,) = [one for one in channel_groups.find(model, x) if one.units == 1500]
    assert {(m.tensor, m.axis, len(m.positions)) for m in group.members} == {("codes.weight", 0, 1500)}
    small = structural.keep_fraction(model, x, {group.name: 0.5})
    assert small.get_submodule("codes").weight.shape == (750, 8) and small(x).shape == (2, 3)


def test_a_model_that_counts_its_rows_is_tried_whole() -> None:
    class Counted(Tagger):
        def forward(self, ids: Tensor) -> Tensor:
            if len(self.table.weight) != 3000:
                raise ValueError("where are the words?")
            return super().forward(ids)

    model, ids = Counted(False).eval(), torch.randint(0, 2999, (2, 6))
    assert not trial_copy.running(model, ids, 60).shortened
    assert [one.units for one in channel_groups.find(model, ids)] == [12, 24]
