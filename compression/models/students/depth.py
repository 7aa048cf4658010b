"""Fewer layers: a student that keeps every second block of its teacher, with its weights.

V. Sanh, L. Debut, J. Chaumond, T. Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
lighter", EMC^2 workshop at NeurIPS 2019, section 2: the student takes one layer out of two of its teacher and is then
distilled.

A model declares its removable blocks by an `architecture.Stack`. A receiver cuts a fresh model down from the shapes
alone (`architecture.shrink`).
"""

from __future__ import annotations

import copy

from torch import nn

from fedpress.compression.models.architecture import Stack, UnsupportedLayer


def depth_of(model: nn.Module) -> int:
    """Return the number of blocks in all stacks of a model."""
    return sum(len(stack) for stack in _stacks(model))


def keep_every(model: nn.Module, step: int = 2) -> nn.Module:
    """Return a copy that keeps the first block of every `step` in each stack, with its weights.

    >>> model = nn.Sequential(Stack(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))
    >>> keep_every(model)[0]
    Stack(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): Linear(in_features=4, out_features=4, bias=True)
    )

    Args:
        model: The model; untouched.
        step: Distance of the blocks kept: 2 halves the layers (rounded up), 1 keeps all.

    Raises:
        UnsupportedLayer: The model has no stack.
        ValueError: `step` is below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}: 2 keeps every second layer")
    smaller = copy.deepcopy(model)
    stacks = _stacks(smaller)
    if not stacks:
        raise UnsupportedLayer(
            f"a {type(model).__name__} has no architecture.Stack, so it is not known which of its layers may be"
            " dropped: put blocks whose outputs have the shape of their inputs into one"
        )
    for stack in stacks:
        stack.keep(list(stack)[::step])
    return smaller


def _stacks(model: nn.Module) -> list[Stack]:
    return [module for module in model.modules() if isinstance(module, Stack)]
