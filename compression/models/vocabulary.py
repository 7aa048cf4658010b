"""Vocabulary of a student: only the tokens that occur in its data keep a row of the embedding.

A pretrained model knows tokens of many languages and subjects, and half of a small one's parameters are their rows
(MiniLM: 11.7 of 22.7 million). `pruning.token_rows` drops those of tokens that never occur. The mapping from ids to
rows is a buffer of the model, so that the tokenizer, the ids, bundles and ONNX graphs stay as they were: on inputs of
tokens that have a row the answers are the same to the bit. All others share one row, the last: the mean of the rows
that were dropped, or a copy of the one of a given id, such as that of "[UNK]".

Where the output layer is tied to the embedding, it answers for all ids too: those without a row get `ABSENT`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

BUFFER: Final = "used"
"""Name of the buffer that says which ids have a row."""
ABSENT: Final = -1e4
"""Logit of an id without a row: a probability of zero, and a finite loss against a teacher that gives it some."""


class Vocabulary(nn.Embedding):
    """Embedding of those ids that are used; all others have the last row.

    Attributes:
        used: Whether an id has a row of its own, uint8 (ids,).
    """

    used: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) of the whole vocabulary to their rows (..., width)."""
        return super().forward(rows_of(self.used, len(self.weight))[ids])


class VocabularyHead(nn.Linear):
    """Output layer tied to a `Vocabulary`: its answers are for all ids.

    Attributes:
        used: Whether an id has a row of its own, uint8 (ids,).
    """

    used: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to logits (..., ids)."""
        logits = functional.linear(x, self.weight)[..., rows_of(self.used, len(self.weight))]
        logits = logits if self.bias is None else logits + self.bias
        return torch.where(self.used.bool(), logits, torch.full_like(logits, ABSENT))


def rows_of(used: Tensor, rows: int) -> Tensor:
    """Return the row of each id, int64 (ids,).

    >>> rows_of(torch.tensor([0, 1, 0, 1], dtype=torch.uint8), 3).tolist()
    [2, 0, 2, 1]

    Args:
        used: Whether an id has a row of its own, uint8 (ids,).
        rows: Number of rows, of which the last is that of all other ids.
    """
    own = used.long()
    return torch.where(own.bool(), own.cumsum(0) - 1, rows - 1)


def resizable(model: nn.Module, table: nn.Embedding) -> None:
    """Give an embedding, and the output layers tied to it, the buffer of ids that have a row, in place.

    Args:
        model: Model that has it.
        table: One of torch's embeddings.
    """
    used = torch.ones(table.weight.shape[0], dtype=torch.uint8, device=table.weight.device)
    for module in model.modules():
        if module is table or (type(module) is nn.Linear and module.weight is table.weight):
            module.__class__ = Vocabulary if module is table else VocabularyHead
            module.register_buffer(BUFFER, used)
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
