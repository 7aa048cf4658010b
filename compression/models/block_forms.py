"""Forms of blocks: which blocks of a list may take each other's place, as far as their weights and settings show.

What they show is a proposal, which `stacks` tries: settings say what a trial on one short example would not, such as
the width of an attention window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fedpress.compression.models import architecture


class Run(NamedTuple):
    """A run of blocks in a list, of which those of unlike kinds that alternate are one unit.

    Attributes:
        first: Place of the first block in the list.
        period: Number of blocks in a unit.
        units: Number of units, at least 2.
        end: Place after the run, which may end with less than a unit.
    """

    first: int
    period: int
    units: int
    end: int


def runs(model: nn.Module, path: str) -> list[Run]:
    """Return the runs of a list in which each unit may take the place of the one before it, as far as is seen.

    Args:
        model: The model.
        path: Name of one of its `architecture.block_lists`.
    """
    module: nn.ModuleList | nn.Sequential = architecture.block_lists(model)[path]
    blocks = list(module.children())
    forms = [_Form(block) if architecture.is_block(block) else None for block in blocks]
    shared = _shared(model, path, module)
    found: list[Run] = []
    start = 0
    while start < len(blocks) - 1:
        for period in range(1, (len(blocks) - start) // 2 + 1):
            end = start + period
            while (
                end < len(blocks)
                and end not in shared
                and end - period not in shared
                and _fits(forms[end], forms[end - period], period)
            ):
                end += 1
            ends_list = isinstance(module, nn.ModuleList)
            if end - start >= 2 * period and (end == len(blocks) or not ends_list):
                found.append(Run(start, period, (end - start) // period, end))
                start = end - 1
                break
        start += 1
    return found


class _Form:
    """What two blocks must have in common so that one may take the place of the other."""

    def __init__(self, block: nn.Module) -> None:
        self.classes = {name: type(module) for name, module in block.named_modules()}
        self.tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in block.state_dict(keep_vars=True).items()}
        self.settings = {
            (name, key): value
            for name, module in block.named_modules()
            for key, value in vars(module).items()
            if key != "training" and _plain(value)
        }


def _plain(value: Any) -> bool:
    """Return whether a value is a setting that a trial of one example may not show; fractions are left to the trial."""
    if isinstance(value, list | tuple):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | str)


def _fits(block: _Form | None, place: _Form | None, distance: int) -> bool:
    """Return whether a block may take a place: of its class, with its tensors, and with its settings but for numbers.

    A whole number that grows with the place is a number of the block. A place with tensors of its own, such as the bias
    of T5's first block, has settings that say so, which the trial judges.
    """
    if block is None or place is None:
        return False
    if any(place.classes.get(name) is not kind for name, kind in block.classes.items()):
        return False
    if any(place.tensors.get(name) != form for name, form in block.tensors.items()):
        return False
    if place.tensors.keys() != block.tensors.keys():
        return True
    for key, value in block.settings.items():
        other = place.settings.get(key, value)
        number = type(value) is int and type(other) is int and value - other == distance
        if other != value and not number:
            return False
    return True


def _shared(model: nn.Module, path: str, module: nn.Module) -> set[int]:
    """Return the places of blocks that share a tensor with another part of the model."""
    owners: dict[int, set[str]] = {}
    names = [name for name, _ in module.named_children()]
    start = f"{path}." if path else ""
    for name, tensor in model.state_dict(keep_vars=True).items():
        rest = name.removeprefix(start).partition(".")[0] if name.startswith(start) else ""
        owners.setdefault(id(tensor), set()).add(rest if rest in names else "")
    together = [owned for owned in owners.values() if len(owned) > 1]
    return {place for place, name in enumerate(names) if any(name in owned for owned in together)}
