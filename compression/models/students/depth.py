"""Fewer layers: a model without some of its blocks, with the weights of those that are left.

`stacks` finds the blocks that may be dropped. Which of them go:

`influence`: those that change the hidden state least: X. Men, M. Xu, Q. Zhang, B. Wang, H. Lin, Y. Lu, X. Han, W. Chen,
    "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, section 3.2: 1 - the mean
    cosine between the states before and after a block, over places and examples, without labels.
`agreement`: one after the other, the one without which the outputs change least (greedy).
`spaced`: evenly between the first and the last, about every second for a half, as V. Sanh, L. Debut, J. Chaumond, T.
    Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", EMC^2 workshop at NeurIPS
    2019, section 2; the places are those of its published script.
`last`, `first`: the last or the first: H. Sajjad, F. Dalvi, N. Durrani, P. Nakov, "On the Effect of Dropping Layers of
    Pre-trained Transformer Models", Computer Speech and Language 2023, section 3.1 (top- and bottom-layer dropping).
`magnitude`: those whose weights have the smallest L2 norm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

from torch import Tensor, nn

from fedpress.compression.models import architecture, inputs, outputs, stacks
from fedpress.compression.models.pruning.settings import LayerOrder
from fedpress.compression.models.reproducible import evaluating
from fedpress.compression.models.stacks import NoStack, Stack

CALIBRATION: Final = 256
"""Inputs on which blocks are compared, at most."""
BATCH: Final = 32
"""Inputs in a forward pass."""


def depth_of(model: nn.Module, example: inputs.Batch) -> int:
    """Return the number of blocks in all stacks of a model, blocks that go together as one.

    Args:
        model: The model; untouched.
        example: Batch of inputs.
    """
    return sum(stack.units for stack in stacks.find(model, example).stacks)


def drop(model: nn.Module, calibration: inputs.Inputs, layers: int | float, order: LayerOrder = "spaced") -> nn.Module:
    """Return a copy of a model with fewer blocks in each stack, with their weights.

    Args:
        model: The model; untouched.
        calibration: Inputs without labels, of which `influence` and `agreement` use `CALIBRATION`, and a trial one.
        layers: Blocks to keep of each stack: a number, or a fraction of them, 0 < fraction <= 1, rounded up; blocks
            that go together only count as one.
        order: Which of them go.

    Raises:
        NoStack: The model has no block that may be dropped, or no stack has more than `layers`.
    """
    found = stacks.find(model, inputs.first(calibration))
    if not found.stacks:
        raise NoStack(
            f"a {type(model).__name__} has no blocks that may be dropped: expected an nn.ModuleList or nn.Sequential of"
            " equal blocks whose outputs can stand for their inputs"
            + (f". Lists that stay whole: {found.explained()}" if found.whole else "")
        )
    counts = {stack: _count(stack, layers) for stack in found.stacks}
    if all(counts[stack] == stack.units for stack in found.stacks):
        if layers == 1.0 and isinstance(layers, float):
            return stacks.keep(model, {})
        units = ", ".join(f"{stack.path or 'the model'} {stack.units}" for stack in found.stacks)
        raise NoStack(f"layers is {layers:g}, but no stack has more blocks: {units}; lower it, or leave it out")
    kept = _kept(model, counts, inputs.first(calibration, CALIBRATION), order)
    smaller = stacks.keep(model, kept)
    stacks.require_same(model, smaller, kept, inputs.first(calibration))
    return smaller


def influences(model: nn.Module, found: Collection[Stack], calibration: inputs.Inputs) -> dict[Stack, list[float]]:
    """Return the influence of each block: 1 - the mean cosine between the hidden states before and after it.

    Places of padding, as the inputs' mask says, do not count. States of maps (N, C, H, W) are compared whole.

    Args:
        model: The model; untouched.
        found: Its stacks.
        calibration: Inputs without labels, (N, ...).

    Raises:
        NoStack: The states of a stack cannot be told from other tensors.
    """
    sums = {stack: [0.0] * stack.units for stack in found}
    weight = 0.0
    with evaluating(model), stacks.watching(model, list(found)) as states:
        for batch in inputs.pieces(calibration, BATCH):
            inputs.call(model, batch)
            for stack, pairs in states.items():
                if not pairs:
                    raise NoStack(
                        f"{stack.path}: the influence of its blocks cannot be told, as outputs have not the shape of"
                        " their inputs; take another order, such as agreement or spaced"
                    )
                for unit, (before, after) in enumerate(pairs):
                    sums[stack][unit] += _cosine(before, after, inputs.present(batch)) * inputs.count(batch)
            weight += inputs.count(batch)
    return {stack: [1 - total / weight for total in totals] for stack, totals in sums.items()}


def _cosine(before: Tensor, after: Tensor, mask: Tensor | None) -> float:
    """Return the mean cosine between states, over the examples and their places."""
    if before.ndim == 3:
        cosines = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        if mask is not None and mask.shape == cosines.shape:
            return float((cosines * mask).sum(dim=1).div(mask.sum(dim=1).clamp(min=1)).mean())
        return float(cosines.mean())
    return float(nn.functional.cosine_similarity(before.double().flatten(1), after.double().flatten(1)).mean())


def _count(stack: Stack, layers: int | float) -> int:
    """Return how many units of a stack stay, at least one."""
    wanted = layers if isinstance(layers, int) else math.ceil(layers * stack.units - 1e-9)
    return max(1, min(stack.units, wanted))


def _kept(
    model: nn.Module, counts: Mapping[Stack, int], calibration: inputs.Inputs, order: LayerOrder
) -> dict[Stack, list[int]]:
    """Return the units to keep of each stack."""
    if order == "agreement":
        return _agreeing(model, counts, calibration)
    if order == "spaced":
        return {stack: stacks.spaced(count, stack.units) for stack, count in counts.items()}
    if order == "influence":
        scores = influences(model, counts.keys(), calibration)
    elif order == "magnitude":
        scores = {stack: _norms(model, stack) for stack in counts}
    else:
        sign = -1 if order == "last" else 1
        scores = {stack: [float(sign * unit) for unit in range(stack.units)] for stack in counts}
    return {
        stack: sorted(sorted(range(stack.units), key=lambda unit: (-scores[stack][unit], unit))[:count])
        for stack, count in counts.items()
    }


def _norms(model: nn.Module, stack: Stack) -> list[float]:
    """Return the L2 norm of the weights of each unit."""
    blocks = list(architecture.block_lists(model)[stack.path])
    return [
        math.sqrt(
            sum(
                float(p.detach().double().square().sum())
                for place in stack.places(unit)
                for p in blocks[place].parameters()
            )
        )
        for unit in range(stack.units)
    ]


def _agreeing(model: nn.Module, counts: Mapping[Stack, int], calibration: inputs.Inputs) -> dict[Stack, list[int]]:
    """Return the units that are left when the least missed of any stack that has too many goes, one after the other."""
    kept = {stack: list(range(stack.units)) for stack in counts}
    answers = _answers(model, calibration)
    scale = sum(float(answer.square().sum()) for answer in answers) or 1.0
    while any(len(kept[stack]) > count for stack, count in counts.items()):
        changes: list[tuple[float, int, Stack, int]] = []
        for stack, count in counts.items():
            for unit in kept[stack] if len(kept[stack]) > count else []:
                gone = {s: set(range(s.units)) - set(kept[s]) | ({unit} if s == stack else set()) for s in counts}
                with stacks.silenced(model, gone):
                    got = _answers(model, calibration)
                change = sum(float((a - b).square().sum()) for a, b in zip(answers, got, strict=True)) / scale
                changes.append((change if math.isfinite(change) else math.inf, len(changes), stack, unit))
        _, _, stack, unit = min(changes, key=lambda change: change[:2])
        kept[stack].remove(unit)
    return kept


def _answers(model: nn.Module, calibration: inputs.Inputs) -> list[Tensor]:
    """Return the first tensor of a model's outputs for each batch."""
    with evaluating(model):
        return [outputs.tensors(inputs.call(model, batch))[0].double() for batch in inputs.pieces(calibration, BATCH)]
