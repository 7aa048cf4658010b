"""Rows of tokens that never occur go; what occurs is answered as before, to the bit, and what does not is counted."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.compression.models.pruning import structural, token_rows
from fedpress.compression.models.pruning.settings import Pruning


class Texts(nn.Module):
    """Ids and positions are looked up, and the ids are an argument by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(50, 6), nn.Embedding(60, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids))
        answer: Tensor = self.head((x * mask[..., None]).sum(1))
        return answer


def texts(ids: Tensor) -> dict[str, Tensor]:
    return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.float32)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 49), min_size=4, max_size=12), st.one_of(st.none(), st.integers(0, 49)))
def test_answers_on_what_occurs_are_the_same_to_the_bit(ids: list[int], unknown: int | None) -> None:
    torch.manual_seed(0)
    model, data = Texts(), texts(torch.tensor([ids]))
    found = token_rows.narrowed(model, data, unknown)
    assert (found.table, found.argument, found.used) == ("words", "ids", len(set(ids)))
    assert torch.equal(found.model(**data), model(**data))
    others = torch.tensor([sorted(set(range(50)) - set(ids))])
    rows = found.model.words(others)[0]
    table = model.words.weight
    if unknown is None:
        like = nn.functional.cosine_similarity((table - table.mean(0))[:, None], (table - table.mean(0))[None], dim=2)
        kept = torch.tensor(sorted(set(ids)))
        expected = table[kept[like[others[0]][:, kept].argmax(1)]]
    else:
        expected = table[unknown].expand_as(rows)
    assert torch.equal(rows, expected)
    share = (len(others[0]) - (unknown in others[0].tolist())) / len(others[0])
    assert token_rows.unknown_share(found, data) == 0 and token_rows.unknown_share(found, texts(others)) == share


def test_what_goes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Texts()
    with caplog.at_level(logging.WARNING):
        small = token_rows.with_used_rows(
            Pruning(vocabulary="used"), model, texts(torch.arange(9, -1, -1)[None]), texts(torch.arange(20)[None])
        )
    assert structural.parameters_of(small) == structural.parameters_of(model) - 40 * 6
    assert "10 of the 50 tokens of 'words' occur" in caplog.text and "40 others (ids 10, 11" in caplog.text
    assert "50.00% have none of their own" in caplog.text
    assert token_rows.with_used_rows(Pruning(), model, texts(torch.arange(9, -1, -1)[None]), {}) is model


def test_where_nothing_is_looked_up_all_rows_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(4, 2)
    with caplog.at_level(logging.WARNING):
        found = token_rows.narrowed(model, torch.zeros(3, 4))
    assert found.table == "" and "all rows stay" in caplog.text and token_rows.unknown_share(found, {}) == 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown_id: got 50, expected an id of the 50"):
        token_rows.narrowed(Texts(), texts(torch.arange(4, -1, -1)[None]), 50)
    with pytest.raises(ValueError, match="only `vocabulary: used`"):
        Pruning(unknown_id=3)
    with pytest.raises(ValueError, match="granularity must be 'channels'"):
        Pruning(vocabulary="used", granularity="weights")
    with pytest.raises(ValueError, match="does the task hold out proxy data"):
        token_rows.with_used_rows(Pruning(vocabulary="used"), Texts(), texts(torch.zeros(0, 3, dtype=torch.long)), {})


def test_a_table_of_positions_is_no_vocabulary_whatever_the_first_ids_are() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(12, 4), nn.Embedding(40, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            answer: Tensor = self.out((self.words(ids) + self.places(places)).mean(1))
            return answer

    found = token_rows.narrowed(Placed(), torch.arange(10)[None])  # the ids are those of the places

    assert (found.table, found.ids, found.used) == ("words", 12, 10)
    assert found.model.get_parameter("places.weight").shape == (40, 4)
