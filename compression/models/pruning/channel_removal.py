"""Removal of units from a model: what belongs to a unit, and models with all or without some of them."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedpress.compression import suggest
from fedpress.compression.models import architecture
from fedpress.compression.models.pruning.channel_flow import PruneError
from fedpress.compression.models.pruning.code_sizes import CodeSize


class Member(NamedTuple):
    """Part of one tensor that belongs to a group.

    Attributes:
        tensor: Name of the tensor, a parameter or a buffer.
        axis: Axis of the channels.
        positions: Positions along that axis by unit, int64 (units, positions of a unit).
    """

    tensor: str
    axis: int
    positions: Tensor


class Group(NamedTuple):
    """Units of removal, with everything that depends on them.

    Attributes:
        name: First layer of the model whose outputs they are; with a number where it has several groups.
        units: Number of units: channels, neurons or heads; for grouped convolutions one channel of each block.
        members: Parts of all tensors that go with them; those of the layer `name` first.
        sizes: Numbers in the model's code that follow them.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    sizes: tuple[CodeSize, ...] = ()


Axis = tuple[str, int]
"""Name of a tensor, and number of an axis."""
Removal = Sequence[tuple[Group, Tensor]]
"""Groups, and the indices of the units to remove, int64 (k,)."""


def check_ready(model: nn.Module) -> None:
    """Check that all tensors of a model have a shape.

    Raises:
        PruneError: A layer is initialized by its first batch, and has not seen one.
    """
    for path, module in model.named_modules():
        if any(
            isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)
            for tensor in architecture.own_tensors(module).values()
        ):
            raise PruneError(
                f"layer {path!r} is a {type(module).__name__} that gets its shape from its first batch: run the model"
                " on one before it is pruned, or give the layer its sizes"
            )


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU; tensors that a layer keeps of a forward pass are copied without history.

    Args:
        model: The model; untouched.

    Raises:
        PruneError: A layer holds something that cannot be copied.
    """

    def without_history(root: nn.Module) -> dict[int, Any]:
        values = [value for module in root.modules() for value in vars(module).values()]
        return {
            id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf
        }

    try:
        return copy.deepcopy(model, without_history(model)).cpu()
    except Exception as error:
        for path, module in reversed(list(model.named_modules())):  # parts before what holds them
            try:
                copy.deepcopy(module, without_history(module))
            except Exception as cause:
                raise PruneError(
                    f"layer {path!r}, a {type(module).__name__}, cannot be copied: {type(cause).__name__}: {cause}."
                    " What it holds besides weights must allow copy.deepcopy"
                ) from cause
        raise PruneError(f"the model cannot be copied: {type(error).__name__}: {error}") from error


def ignored_paths(model: nn.Module, ignored: Collection[nn.Module | str]) -> set[str]:
    """Return the paths of ignored layers, with those of all their parts.

    Args:
        model: The model.
        ignored: Layers of it, or patterns of their names.

    Raises:
        PruneError: A pattern matches no layer.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: set[str] = set()
    for each in ignored:
        if isinstance(each, str):
            matching = [path for path in modules if path and fnmatch.fnmatchcase(path, each)]
            if not matching:
                names = [path for path in modules if path]
                raise PruneError(
                    f"ignored: no layer is called {each!r}; expected one of {suggest.choices(names, each)}"
                )
        else:
            matching = [path for path, module in modules.items() if module is each]
        found.update(path for path in modules for root in matching if path == root or path.startswith(f"{root}."))
    return found


def cut(model: nn.Module, removal: Removal, hollow: bool = False) -> None:
    """Remove units from a model with everything that depends on them, in place.

    Args:
        model: The model, or another one of its architecture.
        removal: Groups and units; all groups of one `find`.
        hollow: Whether tensors that shrink become zeros of their new shape, which costs nothing, for a model that is
            only measured.
    """
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group, units in removal:
        for member in group.members if len(units) else ():
            gone.setdefault((member.tensor, member.axis), []).append(member.positions[units].flatten())
    tensors = named_tensors(model)
    changed = set()
    for (name, axis), positions in gone.items():
        tensor = tensors[name]
        changed.add(id(tensor))
        if hollow:
            shape = list(tensor.shape)
            shape[axis] -= sum(len(part) for part in positions)
            tensor.data = torch.zeros((), dtype=tensor.dtype).expand(shape)
            continue
        left = torch.ones(tensor.shape[axis], dtype=torch.bool)
        left[torch.cat(positions)] = False
        tensor.data = tensor.data.index_select(axis, left.nonzero().flatten().to(tensor.device))
        tensor.grad = None
    for module in model.modules():
        if changed & {id(tensor) for tensor in architecture.own_tensors(module).values()}:
            architecture.describe(module)
    for group, units in removal:
        for size in group.sizes if len(units) else ():
            path, _, attribute = size.name.rpartition(".")
            before = getattr(model.get_submodule(path), attribute)
            architecture.resize(model, size.name, before - len(units) * size.per_unit)


@contextmanager
def without(model: nn.Module, removal: Removal, hollow: bool = False) -> Iterator[None]:
    """Run a block in which units of a model are removed, and put them back.

    Args:
        model: The model, or another one of its architecture.
        removal: Groups and units; all groups of one `find`.
        hollow: As for `cut`.
    """
    tensors = [(tensor, tensor.data) for tensor in named_tensors(model).values()]
    states = [(module, module.__class__, dict(vars(module))) for module in model.modules()]
    try:
        cut(model, removal, hollow)
        yield
    finally:
        for tensor, data in tensors:
            tensor.data = data
        for module, kind, attributes in states:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def called(model: nn.Module, example: Any) -> Any:
    """Return the outputs of a model for an example, as for `find`."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def outputs_of(outputs: Any) -> list[Tensor]:
    """Return the tensors in the outputs of a model, in their order.

    Args:
        outputs: Tensor, or tuples, lists and dicts of them, or an object that has such.

    Raises:
        PruneError: There is none.
    """
    tensors = list(flat(outputs))
    if not tensors:
        raise PruneError(f"the model returned a {type(outputs).__name__} without tensors: expected at least one")
    return tensors


def flat(value: Any, inner: bool = False) -> Iterator[Tensor]:
    """Yield the tensors of outputs, without those of an object within them, such as a cache of keys and values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in flat(part, inner=True))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in flat(part, inner=True))
    elif dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not inner):
        yield from flat(vars(value))


def on_cpu(example: Any, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Return an example with its tensors on the CPU, changed by a function."""
    if isinstance(example, Tensor):
        return change(example.detach().cpu())
    if isinstance(example, Mapping):
        return {key: on_cpu(value, change) for key, value in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(on_cpu(value, change) for value in example)
    return example
