"""Vocabulary of a student: only the tokens that occur in its data keep a row of the embedding.

A pretrained model knows tokens of many languages and subjects, and half of a small one's parameters are their rows
(MiniLM: 11.7 of 22.7 million). `pruning.token_rows` drops those of tokens that never occur. The mapping from ids to
rows is a buffer of the model, so that the tokenizer, the ids, bundles and ONNX graphs stay as they were: on inputs of
tokens that have a row the answers are the same to the bit. Any other token has the row of one that is like it.

Where the output layer is tied to the embedding, it answers for all ids too: those without a row get `ABSENT`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

BUFFER: Final = "rows"
"""Name of the buffer that says which row an id has."""
ABSENT: Final = -1e4
"""Logit of an id without a row: a probability of zero, and a finite loss against a teacher that gives it some."""
_PIECE: Final = 4096


class Vocabulary(nn.Embedding):
    """Embedding of those ids that have a row; all others have the row of one of them.

    Attributes:
        rows: Row of each id, int32 (ids,): r where it is its own, -1 - r where it is another id's.
    """

    rows: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) of the whole vocabulary to their rows (..., width)."""
        return super().forward(rows_of(self.rows, len(self.weight))[ids])


class VocabularyHead(nn.Linear):
    """Output layer tied to a `Vocabulary`: its answers are for all ids.

    Attributes:
        rows: Row of each id, as of `Vocabulary`.
    """

    rows: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to logits (..., ids)."""
        logits = functional.linear(x, self.weight)[..., rows_of(self.rows, len(self.weight))]
        logits = logits if self.bias is None else logits + self.bias
        return torch.where(self.rows >= 0, logits, torch.full_like(logits, ABSENT))


def rows_of(rows: Tensor, most: int) -> Tensor:
    """Return the row of each id, int64 (ids,), its own or another's.

    >>> rows_of(torch.tensor([0, -2, 1, -1], dtype=torch.int32), 2).tolist()
    [0, 1, 1, 0]

    Args:
        rows: Buffer of a `Vocabulary`.
        most: Number of rows; a larger one is the last.
    """
    wide = rows.long()
    return torch.where(wide < 0, -1 - wide, wide).clamp(max=most - 1)


def nearest(rows: Tensor, used: Tensor) -> Tensor:
    """Return the buffer of a vocabulary in which each unused id has the row of the used one that is most like it.

    Rows are compared by their cosine, after the mean of all is taken away, which they have in common.

    Args:
        rows: Rows of all ids, (ids, width).
        used: Whether an id keeps its row, bool (ids,).
    """
    centered = functional.normalize(rows.float() - rows.float().mean(0), dim=1)
    kept = centered[used]
    found = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
    found[used] = torch.arange(len(kept), dtype=torch.int32, device=rows.device)
    others = (~used).nonzero().flatten()
    for piece in torch.split(others, _PIECE):
        found[piece] = (-1 - (centered[piece] @ kept.T).argmax(1)).int()
    return found


def resizable(model: nn.Module, table: nn.Embedding) -> None:
    """Give an embedding, and the output layers tied to it, the buffer that says which row an id has, in place.

    Args:
        model: Model that has it.
        table: One of torch's embeddings.
    """
    rows = torch.arange(table.weight.shape[0], dtype=torch.int32, device=table.weight.device)
    for module in model.modules():
        if module is table or (type(module) is nn.Linear and module.weight is table.weight):
            module.__class__ = Vocabulary if module is table else VocabularyHead
            module.register_buffer(BUFFER, rows)
    vars(table)["padding_idx"] = None  # it would be the number of a row


def whole(model: nn.Module) -> None:
    """Undo `resizable`, in place.

    Args:
        model: Model in which all ids still have their row.
    """
    for module in model.modules():
        if isinstance(module, Vocabulary | VocabularyHead):
            kind: type[nn.Module] = nn.Embedding if isinstance(module, Vocabulary) else nn.Linear
            module.__class__ = kind  # type: ignore[assignment]
            delattr(module, BUFFER)
