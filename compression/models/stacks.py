"""Stacks: runs of blocks in a model, any of which may be dropped, found by trial rather than by the names of classes.

A block can be dropped if its output can stand for its input. Blocks are looked for in every `nn.ModuleList` and
`nn.Sequential`, and are kept by their weights: the first k blocks of the stack stay in place, with the weights of the k
blocks kept. So numbers that belong to a place (of a cache, of a rotary embedding, T5's bias of the first block) stay
right, and a receiver that cuts a fresh model down to its first k blocks (`architecture.shrink`) has the same model.

Nothing is believed that was not tried: a copy of the model without some blocks must answer exactly as the whole one
does where these pass their input on, or, where they add to a sum outside of them, add nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture, block_forms, inputs, outputs
from fedpress.compression.models.reproducible import evaluating

TOLERANCE: Final = 1e-5
"""Largest relative difference between outputs that rounding explains; the operations and their order are the same."""


class NoStack(FedpressError, ValueError):
    """The model has no stack of blocks that may be dropped."""


class Stack(NamedTuple):
    """A run of equal blocks in a list; blocks of unlike kinds that alternate are one unit of removal together.

    Attributes:
        path: Name of the list in the model.
        first: Place of the first block in the list.
        period: Number of blocks in a unit: 1, or 2 where, say, local and global attention alternate.
        units: Number of units, at least 2.
        end: Place after the run, which may end with less than a unit.
        adds: Whether a dropped block adds nothing to a sum outside of it; otherwise it passes its input on.
    """

    path: str
    first: int
    period: int
    units: int
    end: int
    adds: bool = False

    def places(self, unit: int) -> range:
        """Return the places of a unit's blocks in the list."""
        return range(self.first + unit * self.period, self.first + (unit + 1) * self.period)


class Found(NamedTuple):
    """What `find` returns.

    Attributes:
        stacks: Stacks, in the model's order.
        whole: Reasons why other lists of blocks stay whole, by their names.
    """

    stacks: tuple[Stack, ...]
    whole: dict[str, str]

    def explained(self) -> str:
        """Return the reasons as a part of a sentence."""
        return "; ".join(f"{path or 'the model'}: {reason}" for path, reason in self.whole.items())


def find(model: nn.Module, example: inputs.Batch) -> Found:
    """Return the stacks of a model.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.layer(x).relu()
    >>> model = nn.Sequential(nn.Sequential(*(Block() for _ in range(3))), nn.Linear(4, 2))
    >>> find(model, torch.zeros(1, 4)).stacks
    (Stack(path='0', first=0, period=1, units=3, end=3, adds=False),)

    Args:
        model: The model; untouched.
        example: Batch of inputs.
    """
    if not architecture.block_lists(model):
        return Found((), {})
    probe = _disturbed(model)
    probe_calls = _calls(probe, example)
    found: list[Stack] = []
    whole: dict[str, str] = {}
    for path, module in architecture.block_lists(probe).items():
        if any(f"{path}.".startswith(f"{block}.") for stack in found for block in _names(probe, stack)):
            continue  # parts of blocks that go as a whole
        runs = block_forms.runs(probe, path)
        if not runs:
            if len(module) > 1:
                whole[path] = "no two of its blocks have weights of the same shapes and the same settings"
            continue
        for run in runs:
            stack, reason = _tried(probe, Stack(path, *run), example, probe_calls)
            if stack is not None:
                found.append(stack)
            else:
                whole[path] = reason
    return Found(tuple(found), whole)


def spaced(count: int, many: int) -> list[int]:
    """Return evenly spaced places, of which the first and the last are two.

    >>> spaced(6, 12), spaced(1, 6)  # of DistilBERT, in BERT
    ([0, 2, 4, 7, 9, 11], [0])

    Args:
        count: Number of places to choose.
        many: Number of places.
    """
    return [round(part * (many - 1) / max(1, count - 1)) for part in range(count)]


def _names(model: nn.Module, stack: Stack) -> list[str]:
    """Return the names of a stack's blocks in the model."""
    names = [name for name, _ in model.get_submodule(stack.path).named_children()]
    return [f"{stack.path}.{name}".lstrip(".") for name in names[stack.first : stack.end]]


def keep(model: nn.Module, kept: Mapping[Stack, Collection[int]]) -> nn.Module:
    """Return a copy of a model that keeps some units of each stack, with their weights.

    Args:
        model: The model; untouched.
        kept: Units to keep, at least one, by stack; stacks that are not named stay whole.

    Raises:
        ValueError: Units of a stack are not its own.
    """
    smaller = copy.deepcopy(model)
    for stack, units in kept.items():
        if not units or not set(units) <= set(range(stack.units)):
            raise ValueError(f"{stack.path}: got units {sorted(units)}, expected at least one out of {stack.units}")
        blocks = list(smaller.get_submodule(stack.path).children())
        gone = {place for unit in set(range(stack.units)) - set(units) for place in stack.places(unit)}
        left = [place for place in range(stack.first, stack.end) if place not in gone]
        for place, source in enumerate(left, stack.first):
            _move(blocks[source], blocks[place])
        architecture.drop_blocks(smaller, {stack.path: range(stack.first + len(left), stack.end)})
    return smaller


def require_same(
    model: nn.Module, smaller: nn.Module, kept: Mapping[Stack, Collection[int]], example: inputs.Batch
) -> None:
    """Check that a model without blocks answers as the whole one does without what these blocks do.

    Args:
        model: The whole model; untouched.
        smaller: The model as `keep` returns it.
        kept: The units kept, as for `keep`.
        example: Batch of inputs.

    Raises:
        NoStack: It does not.
    """
    if reason := _difference(model, smaller, kept, example):
        raise NoStack(f"blocks of {', '.join(stack.path for stack in kept)} cannot be dropped: {reason}")


@contextmanager
def silenced(model: nn.Module, gone: Mapping[Stack, Collection[int]]) -> Iterator[None]:
    """Run a block in which units of a model's stacks pass their input on, or add nothing.

    Args:
        model: The model; as before after the block.
        gone: Units by stack.
    """
    handles: list[RemovableHandle] = []
    for stack, units in gone.items():
        blocks = list(model.get_submodule(stack.path).children())
        for place in (place for unit in units for place in stack.places(unit)):
            for part in _leaders(stack, blocks[place]):
                handles += _hooks(part, _nothing if stack.adds else _passed_on)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching(model: nn.Module, stacks: Sequence[Stack]) -> Iterator[dict[Stack, list[tuple[Tensor, Tensor]]]]:
    """Record the hidden states before and after each unit of the stacks in the last forward pass of a block.

    The state after a unit that adds to a sum outside of it is that before the next; of the last one, its own sum.

    Args:
        model: The model; as before after the block.
        stacks: Its stacks.

    Yields:
        (before, after) of each unit by stack, which each pass fills anew.
    """
    states: dict[Stack, list[tuple[Tensor, Tensor]]] = {stack: [] for stack in stacks}
    handles: list[RemovableHandle] = []

    def watch(stack: Stack) -> None:
        blocks = list(model.get_submodule(stack.path).children())
        parts = [
            [part for place in stack.places(unit) for part in _leaders(stack, blocks[place])]
            for unit in range(stack.units)
        ]
        before: dict[int, Tensor] = {}
        after: dict[int, Tensor] = {}

        def noting(unit: int, module: nn.Module) -> Callable[[list[Tensor], Any], None]:
            def note(given: list[Tensor], output: Any) -> None:
                result = _first(output)
                state = _alike(given, result)
                if state is None or result is None:
                    return
                if module is parts[unit][0]:
                    before[unit] = after[unit] = state
                after[unit] = after[unit] + result.detach() if stack.adds else result.detach()
                if unit == stack.units - 1 and module is parts[unit][-1] and len(before) == stack.units:
                    following = {number: before[number + 1] for number in range(stack.units - 1)}
                    ends = {**after, **following} if stack.adds else after
                    states[stack] = [(before[number], ends[number]) for number in range(stack.units)]

            return note

        for unit, modules in enumerate(parts):
            for module in modules:
                handles.extend(_hooks(module, noting(unit, module)))

    for stack in stacks:
        watch(stack)
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _leaders(stack: Stack, block: nn.Module) -> list[nn.Module]:
    return _parts(block) if stack.adds else [block]


# ---- trial -------------------------------------------------------------------------------------------------------


def _tried(model: nn.Module, run: Stack, example: inputs.Batch, calls: Mapping[int, int]) -> tuple[Stack | None, str]:
    """Return the run as a stack, or the reason why nothing of it may be dropped."""
    blocks = list(model.get_submodule(run.path).children())
    parts = [part for unit in range(run.units) for place in run.places(unit) for part in _parts(blocks[place])]
    if not any(calls.get(id(part)) for part in parts):
        return None, "its blocks are not run"
    if any(calls.get(id(part), 0) > 1 for part in parts):
        return None, "its blocks are run more than once"
    reasons = []
    for adds in (False, True):
        if not adds and not all(
            calls.get(id(blocks[place])) for unit in range(run.units) for place in run.places(unit)
        ):
            continue  # blocks that are never called as such pass nothing on
        stack = run._replace(adds=adds)
        reason = ""
        for units in (range(0, run.units, 2), range(1, run.units, 2)):
            reason = reason or _difference(model, None, {stack: units}, example)
        if not reason:
            return stack, ""
        reasons.append(reason)
    return None, reasons[0]


def _difference(
    model: nn.Module, smaller: nn.Module | None, kept: Mapping[Stack, Collection[int]], example: inputs.Batch
) -> str:
    """Return what is wrong with a model that keeps some units only; "": nothing."""
    gone = {stack: sorted(set(range(stack.units)) - set(units)) for stack, units in kept.items()}
    try:
        smaller = keep(model, kept) if smaller is None else smaller
        got = _outputs(smaller, example)
    except Exception as error:  # whatever a model's own code raises
        return f"without some of its blocks the model does not run ({type(error).__name__}: {error})"
    with silenced(model, gone):
        expected = _outputs(model, example)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (got, expected)]
    if shapes[0] != shapes[1]:
        return f"without some of its blocks the outputs change from {shapes[1]} to {shapes[0]}"
    for one, other in zip(got, expected, strict=True):
        scale = float(other[other.isfinite()].abs().max()) if other.isfinite().any() else 0.0
        if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
            return (
                "without some of its blocks the model answers otherwise than where these pass their input on; what they"
                " do depends on their place, or others use what they put out"
            )
    return ""


def _outputs(model: nn.Module, example: inputs.Batch) -> list[Tensor]:
    with evaluating(model):
        return [tensor.double() for tensor in outputs.tensors(inputs.call(model, example))]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in tensors, mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in _tensors(part))


def _calls(model: nn.Module, example: inputs.Batch) -> dict[int, int]:
    """Return how often each module is called in a forward pass, by its id."""
    calls: dict[int, int] = {}

    def count(module: nn.Module, *_: Any) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        _outputs(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _parts(block: nn.Module) -> list[nn.Module]:
    """Return the block, or, where it is a mere container without a forward pass, what is called of it."""
    kinds = type(block).__mro__
    if any("forward" in vars(kind) for kind in kinds[: kinds.index(nn.Module)]):
        return [block]
    return [part for child in block.children() for part in _parts(child)]


def _hooks(module: nn.Module, action: Callable[[list[Tensor], Any], Any]) -> tuple[RemovableHandle, RemovableHandle]:
    """Call a function with the tensors that a module is given, as they were before, and its output, to replace it."""
    given: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given[:] = [tensor.detach().clone() for tensor in _tensors([args, named])]  # a block may write into them

    def after(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return action(given, output)

    return (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    )


def _passed_on(given: list[Tensor], output: Any) -> Any:
    """Return a block's output with the state that it was given in place of its own."""
    state = _alike(given, _first(output))
    return output if state is None else _with_first(output, state)


def _nothing(given: list[Tensor], output: Any) -> Any:
    """Return a block's output with zeros in place of its state."""
    result = _first(output)
    return output if result is None else _with_first(output, torch.zeros_like(result))


def _first(value: Any) -> Tensor | None:
    return next(_tensors(value), None)


def _alike(given: list[Tensor], result: Tensor | None) -> Tensor | None:
    """Return the first tensor of an input that has the shape and dtype of a result."""
    if result is None:
        return None
    return next((t for t in given if t.shape == result.shape and t.dtype == result.dtype), None)


def _with_first(output: Any, tensor: Tensor) -> Any:
    """Return an output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        changed = copy.copy(output)
        key = next(key for key, part in output.items() if _first(part) is not None)
        changed[key] = _with_first(output[key], tensor)  # type: ignore[index]
        return changed
    number = next(number for number, part in enumerate(output) if _first(part) is not None)
    members = [_with_first(part, tensor) if place == number else part for place, part in enumerate(output)]
    return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)


def _disturbed(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose weights are moved a little, so that no block is silent by weights of zero."""
    other = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in other.parameters():
            if parameter.is_floating_point():
                scale = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
                size = 0.1 * scale if math.isfinite(scale) and scale > 0 else 0.02
                parameter.add_(size * torch.randn_like(parameter))
    return other


def _move(source: nn.Module, place: nn.Module) -> None:
    """Give a place the weights of a block; tensors that it alone has stay."""
    if source is place:
        return
    of_place = place.state_dict(keep_vars=True)
    for name, tensor in source.state_dict(keep_vars=True).items():
        of_place[name].data = tensor.data
        if isinstance(tensor, nn.Parameter):
            of_place[name].requires_grad_(tensor.requires_grad)
