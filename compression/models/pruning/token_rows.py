"""Rows of an embedding for the tokens that occur in a student's data; the others share these.

What the model does with ids afterwards is in `compression/models/vocabulary.py`. Which tokens occur is counted on the
inputs that students learn on; how many tokens of validation data have no row of their own then, is said.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from fedpress.compression.models import inputs, vocabulary
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.reproducible import evaluating

_PIECE: Final = 1024

_log = logging.getLogger(__name__)


class Narrowed(NamedTuple):
    """A model of fewer rows, and what was dropped.

    Attributes:
        model: The model.
        table: Path of the embedding; "": ids are no input of one, and the model is as it was.
        argument: Argument that has the ids; "": the only one.
        ids: Number of ids.
        used: Number of ids that have a row of their own.
    """

    model: nn.Module
    table: str
    argument: str
    ids: int
    used: int


def narrowed(model: nn.Module, data: Inputs, unknown_id: int | None = None) -> Narrowed:
    """Return a copy whose largest embedding of ids has rows for the ids in some inputs only.

    Args:
        model: The model; untouched.
        data: Inputs of N examples.
        unknown_id: Id whose row all ids without one get, which it keeps; None: each that of the id most like it.

    Raises:
        ValueError: There is no id of that number.
    """
    table, argument = _table_of(model, inputs.first(data))
    if not table:
        _log.warning("vocabulary: no input of the model is ids that one of torch's embeddings looks up; all rows stay")
        return Narrowed(model, "", "", 0, 0)
    smaller = copy.deepcopy(model)
    module = smaller.get_submodule(table)
    assert isinstance(module, nn.Embedding)  # by `_table_of`
    rows = module.weight.detach()
    if unknown_id is not None and not 0 <= unknown_id < len(rows):
        raise ValueError(f"unknown_id: got {unknown_id}, expected an id of the {len(rows):,} that {table!r} knows")
    used = torch.zeros(len(rows), dtype=torch.bool)
    for piece in inputs.pieces(data, _PIECE):
        used[(piece[argument] if argument else piece).unique().cpu()] = True
    count = int(used.sum())
    if unknown_id is not None:
        used[unknown_id] = True
    if bool(used.all()):
        _log.warning("vocabulary: %d of the %d ids of %r occur, so all rows stay", count, len(rows), table)
        return Narrowed(smaller, "", "", len(rows), count)
    vocabulary.resizable(smaller, module)
    buffer = vocabulary.nearest(rows, used)
    if unknown_id is not None:
        buffer = torch.where(buffer < 0, -1 - buffer[unknown_id], buffer)
    module.weight.data = rows[used].clone()
    module.get_buffer(vocabulary.BUFFER).copy_(buffer)
    module.num_embeddings = len(module.weight)
    return Narrowed(smaller, table, argument, len(rows), count)


def unknown_share(found: Narrowed, data: Inputs) -> float:
    """Return the fraction of the tokens in some inputs that have no row of their own.

    Args:
        found: Model of fewer rows.
        data: Inputs of N examples.
    """
    if not found.table:
        return 0.0
    used: Tensor = found.model.get_submodule(found.table).get_buffer(vocabulary.BUFFER) >= 0
    unknown = tokens = 0
    for piece in inputs.pieces(data, _PIECE):
        ids = piece[found.argument] if found.argument else piece
        tokens += ids.numel()
        unknown += int((~used[ids]).sum())
    return unknown / max(1, tokens)


def said(found: Narrowed, share: float) -> str:
    """Return what was dropped, in words.

    Args:
        found: Model of fewer rows.
        share: Fraction of the tokens of validation data that have no row of their own.
    """
    used = found.model.get_submodule(found.table).get_buffer(vocabulary.BUFFER) >= 0
    ids = (~used).nonzero().flatten().tolist()
    return (
        f"vocabulary: {found.used:,} of the {found.ids:,} tokens of {found.table!r} occur and keep their row; the"
        f" {len(ids):,} others (ids {', '.join(map(str, ids[:8]))}, ...) share these; of the tokens of validation data"
        f" {share:.2%} have none of their own"
    )


def _table_of(model: nn.Module, example: Batch) -> tuple[str, str]:
    """Return the path of the largest embedding that looks up an input as it is, and the argument's name.

    It must do so for other ids as well: a table of positions looks up 0, 1, 2, ..., which may be those of one example.
    """
    looked_up = _lookups(model, example) & _lookups(model, inputs.mapped(example, _moved))
    _, path, name = max(looked_up, default=(0, "", ""))
    return path, name


def _moved(tensor: Tensor) -> Tensor:
    """Return the same ids in other places."""
    return tensor if tensor.is_floating_point() else tensor.roll(1, -1)


def _lookups(model: nn.Module, example: Batch) -> set[tuple[int, str, str]]:
    """Return rows and path of each embedding that looks up an input as it is, and the argument's name."""
    tensors = dict(example) if isinstance(example, Mapping) else {"": example}
    looked_up: set[tuple[int, str, str]] = set()

    def hook(path: str) -> Any:
        def noted(module: nn.Module, args: tuple[Any, ...]) -> None:
            for name, tensor in tensors.items():
                ids = args[0] if args else None
                if isinstance(ids, Tensor) and not ids.is_floating_point() and torch.equal(ids, tensor):
                    looked_up.add((module.get_parameter("weight").shape[0], path, name))

        return noted

    tables = [(path, module) for path, module in model.named_modules() if type(module) is nn.Embedding]
    hooks = [module.register_forward_pre_hook(hook(path)) for path, module in tables]
    try:
        with evaluating(model):
            inputs.call(model, inputs.to(example, next(model.parameters()).device))
    finally:
        for each in hooks:
            each.remove()
    return looked_up


def with_used_rows(pruning: Pruning, model: nn.Module, learned: Inputs, judged: Inputs) -> nn.Module:
    """Return a model with rows for the tokens that occur only, if the settings say so; a warning says what went.

    Args:
        pruning: Whether all rows stay, and the id whose row the other tokens share.
        model: Model to prune; untouched.
        learned: Inputs that students learn on, which decide.
        judged: Inputs whose unknown tokens are counted.

    Raises:
        ValueError: There is no id of the number of `unknown_id`, or there are no inputs to decide by.
    """
    if pruning.vocabulary == "all":
        return model
    if inputs.count(learned) == 0:
        raise ValueError(
            "vocabulary 'used': there are no inputs that students learn on; does the task hold out proxy data?"
        )
    found = narrowed(model, learned, pruning.unknown_id)
    if found.table:
        _log.warning("%s", said(found, unknown_share(found, judged)))
    return found.model
