"""An embedding of fewer rows takes all ids, alone and tied to an output layer, and shapes alone bring it back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture, vocabulary
from fedpress.compression.models.architecture import ArchitectureError
from fedpress.compression.models.pruning import structural, token_rows


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 30)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        answer: Tensor = self.head(x + self.down(torch.relu(self.up(x))))
        return answer


IDS = torch.tensor([[0, 3, 7], [29, 3, 3]])


def test_tied_answers_are_for_all_ids() -> None:
    torch.manual_seed(0)
    model = Tied()
    found = token_rows.narrowed(model, IDS)
    small = found.model
    assert (found.table, found.ids, found.used) == ("words", 30, 4)
    assert small.words.weight is small.head.weight and small.words.weight.shape == (4, 8)
    whole, answer = model(IDS), small(IDS)
    used = [0, 3, 7, 29]
    assert answer.shape == whole.shape and torch.allclose(answer[..., used], whole[..., used])
    assert (answer[..., [number for number in range(30) if number not in used]] == vocabulary.ABSENT).all()


def test_shapes_alone_bring_it_back_also_pruned() -> None:
    torch.manual_seed(0)
    small = structural.keep_fraction(token_rows.narrowed(Tied(), IDS).model, IDS[:1], 0.5)
    assert small.words.weight.shape == (4, 4)
    again = Tied()
    architecture.shrink(again, architecture.shapes(small), architecture.sizes(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(IDS), small(IDS)) and again.words.weight is again.head.weight


def test_other_shapes_leave_the_model_as_it_was() -> None:
    model = Tied()
    shapes = architecture.shapes(token_rows.narrowed(model, IDS).model)
    with pytest.raises(ArchitectureError, match=r"no tensor \['other'\]"):
        architecture.shrink(model, shapes | {"other": (3,)})
    assert type(model.words) is nn.Embedding and type(model.head) is nn.Linear
    assert architecture.shapes(model) == architecture.shapes(Tied())
    with pytest.raises(ArchitectureError):
        architecture.shrink(model, shapes | {"words.rows": (29,)})
