"""Groups of a model that can only be pruned together: channels, neurons, feed-forward units, attention heads.

The parts of a unit (a channel, the batch norm behind it, the columns of the next layer, both ends of a residual
connection; for a head its rows of queries, keys and values and its columns of the output) are found by following labels
through a forward pass (`channel_labels`), after the idea of G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph:
Toward Any Structural Pruning", CVPR 2023, section 3.

Nothing is believed that was not tried: a copy of the model with random weights is pruned by part of every group, and
must answer as `channel_flow.Absent` says that the model answers without these channels, up to rounding. Groups that
fail, such as those with a size written into the forward pass, are found by bisection and stay whole; a warning names
them.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import fnmatch
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedpress.compression import suggest
from fedpress.compression.models import architecture, multihead_attention
from fedpress.compression.models.pruning import code_sizes
from fedpress.compression.models.pruning.channel_flow import Absent, Flow, PruneError, Steady, placed
from fedpress.compression.models.pruning.channel_labels import KEPT, Axes, Labels, LabelSets, TensorLabels
from fedpress.compression.models.pruning.code_sizes import CodeSize, Noted, tagged
from fedpress.compression.models.pruning.settings import Tracing

_LARGEST_TOLERANCE: Final = 1e-3
"""Relative difference between outputs beyond which no amount of the model's own rounding is an excuse."""

HINT: Final = (
    "The likely cause is a size written into the forward pass, such as x.view(-1, 1024): write x.flatten(1), or name"
    " the layer in `ignored`"
)

_log = logging.getLogger(__name__)


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


def find(
    model: nn.Module,
    example: Any,
    ignored: Collection[nn.Module | str] = (),
    seconds: float = Tracing().trace_seconds,
) -> list[Group]:
    """Return the groups of a model that can be pruned, the last layers first.

    Outputs of the model, and tensors of layers of a kind that cannot be rebuilt at another size, are left out.

    Args:
        model: The model; untouched.
        example: Batch of inputs, (N, ...); a tuple of arguments, or a dict of named ones.
        ignored: Layers whose own channels are kept, or patterns of their names such as "blocks.0.*".
        seconds: Longest forward pass.

    Raises:
        PruneError: The model cannot be copied or run, a pass takes too long, or nothing has an ignored name.
    """
    return Trials(model, example, ignored, seconds).groups


class Trials:
    """The groups of a model as `find` returns them, and trials of what is to be removed of them.

    Args:
        model: The model; untouched.
        example: Batch of inputs, as for `find`.
        ignored: Layers whose own channels are kept, as for `find`.
        seconds: Longest forward pass.

    Attributes:
        groups: Groups that can be pruned.
        failure: Why there is none, where trials failed for all; empty otherwise.

    Raises:
        PruneError: As for `find`.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        ignored: Collection[nn.Module | str] = (),
        seconds: float = Tracing().trace_seconds,
    ) -> None:
        check_ready(model)
        self.failure = ""
        with _seeded():
            self._probe = Probe(model, example, ignored_paths(model, ignored), seconds)
            self.groups = self._probe.groups()
            wrong = self._probe.wrong(self.groups)
            while self._probe.couple(wrong) or self._probe.cut_otherwise(self.groups, wrong):
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)
            if wrong and self._probe.cut_as_before(self.groups, wrong):
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)
            while wrong:
                explained = "; ".join(f"layer {group.name!r}: {error}" for group, error in wrong[:3])
                if len(wrong) == len(self.groups):
                    self.failure = f"nothing can be removed from the model. {explained}. {HINT}"
                names = ", ".join(group.name for group, _ in wrong)
                _log.warning("layers that keep all their channels: %s. %s. %s", names, explained, HINT)
                self._probe.keep([group for group, _ in wrong])
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)

    def error(self, removal: Removal) -> str:
        """Return what is wrong with the model without some units: it does not run, or answers otherwise; "": nothing.

        Args:
            removal: Some of `groups`, and units of each.
        """
        removal = [pair for pair in removal if len(pair[1])]
        with _seeded():
            return self._probe.error(removal) if removal else ""

    def culprits(self, removal: Removal) -> list[str]:
        """Return the layers that are the cause of an error of a removal.

        Args:
            removal: Some of `groups`, and units of each.
        """
        with _seeded():
            return [group.name for group, _ in self._probe.bisected([pair for pair in removal if len(pair[1])])]


@contextmanager
def _seeded() -> Iterator[None]:
    """Run a block with torch's generator seeded, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


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
            tensor.data = torch.zeros(shape, dtype=tensor.dtype)
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
    tensors = list(_flat(outputs))
    if not tensors:
        raise PruneError(f"the model returned a {type(outputs).__name__} without tensors: expected at least one")
    return tensors


def _flat(value: Any, inner: bool = False) -> Iterator[Tensor]:
    """Yield the tensors of outputs, without those of an object within them, such as a cache of keys and values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _flat(part, inner=True))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in _flat(part, inner=True))
    elif dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not inner):
        yield from _flat(vars(value))


def on_cpu(example: Any, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Return an example with its tensors on the CPU, changed by a function."""
    if isinstance(example, Tensor):
        return change(example.detach().cpu())
    if isinstance(example, Mapping):
        return {key: on_cpu(value, change) for key, value in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(on_cpu(value, change) for value in example)
    return example


class Probe:
    """A copy of a model that is traced, and pruned for trial.

    Args:
        model: The model; untouched.
        example: Batch of inputs, as for `find`.
        kept: Paths of layers whose own channels are kept.
        seconds: Longest forward pass.

    Raises:
        PruneError: As for `find`.
    """

    def __init__(self, model: nn.Module, example: Any, kept: Collection[str], seconds: float) -> None:
        self._seconds, self._kept_layers = seconds, kept
        self._kept: list[Member] = []
        self._parts: dict[int, int] = {}
        self._coupled: tuple[str, ...] = ()
        self._model, self._example, self._tolerance = self._running(model, example)

    def groups(self) -> list[Group]:
        """Return the groups of the model, as far as they are known by now."""
        self._sets = LabelSets()
        self._labels = self._new_labels()
        labels = TensorLabels(self._of(self._model), self._sets, self._parts)
        mode, noted = Flow(labels, self._seconds), Noted(labels)
        with tagged(self._model), placed(self._model, mode), noted:
            outputs = called(self._model, self._example)
        for output in _flat(outputs):
            labels.keep(output, "output of the model")
        self._cuts = labels.cuts
        self._keep_within_heads(labels.attended)
        written, read = self._roles(labels.factors)
        self._keep_ignored(written)
        groups = _groups(self._model, self._labels, self._sets, written, read)
        numbers = code_sizes.per_root(noted.axes, self._sets)
        found = [group._replace(sizes=tuple(numbers(self._roots(group)))) for group in groups]
        parts = [group for group in found if group.name in self._coupled]
        if len(parts) < len(self._coupled) or not parts:
            return found
        rest = [group for group in found if group.name not in self._coupled]
        return [*rest, _together(parts)]

    def couple(self, wrong: Sequence[tuple[Group, str]]) -> bool:
        """Couple a width to heads where a model's code divides it by their number; return whether that is right.

        `x.view(n, length, heads, width // heads)` runs with fewer heads only if the width falls by the size of each.

        Args:
            wrong: Groups that are wrong alone.
        """
        groups = [] if self._coupled else [group for group, _ in wrong]
        for width in groups:
            for units in sorted({group.units for group in groups if width.units % group.units == 0}, reverse=True):
                heads = [group for group in groups if group.units == units < width.units]
                together = _together([*heads, width]) if heads else None
                if together and not self.error([(together, torch.arange(units // 2))]):
                    self._coupled = tuple(group.name for group in [*heads, width])
                    return True
        return False

    def _keep_within_heads(self, attended: Sequence[Labels]) -> None:
        """Keep what another part of an axis than the first made of attention: entries of all heads, not heads."""
        if not self._parts:
            return
        within = np.unique(self._sets.of(np.concatenate([*attended, np.zeros(0, np.int64)])))
        for number in self._parts.keys() & self._cuts.keys():
            labels = self._cuts[number][0]
            self._keep(labels[np.isin(self._sets.of(labels), within)], "heads stay whole")

    def _roles(self, factors: Collection[tuple[int, int]]) -> tuple[set[Axis], set[Axis]]:
        """Return the axes of weights that are outputs of a layer, and those that are its inputs."""
        written, read = set[Axis](), set[Axis]()
        holders, tensors = holders_of(self._model), named_tensors(self._model)
        starts = sorted(
            (int(axis[0]), (name, number))
            for name, axes in self._labels.items()
            for number, axis in enumerate(axes)
            if axis[0]
        )
        firsts = [start for start, _ in starts]
        for summed, other in factors:
            if not (0 < summed < self._first and 0 < other < self._first):
                continue
            (name, axis), (same, out) = (starts[bisect.bisect_right(firsts, label) - 1][1] for label in (summed, other))
            if name == same and axis != out:
                read.add((name, axis))
                written.add((name, out))
        for name in self._labels:
            for _, module in holders[id(tensors[name])]:
                if isinstance(module, _ConvNd | nn.Linear) and tensors[name] is module.weight:
                    own = _own_axis(module, tensors[name])
                    written.add((name, own))
                    read.add((name, 1 - own))
        return written, read

    def _keep_ignored(self, written: Collection[Axis]) -> None:
        """Keep the own channels of ignored layers: outputs of their weights, and all of what is no factor."""
        for path in self._kept_layers:
            module = self._model.get_submodule(path)
            for tensor in architecture.own_tensors(module).values():
                name = self._names.get(id(tensor), "")
                if name not in self._labels:
                    continue
                outputs = [axis for axis in range(tensor.ndim) if (name, axis) in written]
                if isinstance(module, architecture.RESIZABLE):
                    outputs = [_own_axis(module, tensor)]
                for axis in outputs or range(tensor.ndim):
                    self._keep(self._labels[name][axis], f"layer {path!r} is ignored")

    def cut_otherwise(self, groups: Sequence[Group], wrong: Sequence[tuple[Group, str]]) -> bool:
        """Take another part for the channel where an axis is cut into parts and nothing, or nothing right, came of it.

        Args:
            groups: Groups of the last call of `groups`.
            wrong: Those that are wrong.

        Returns:
            Whether there was another part to take.
        """
        parts = {number: self._parts.get(number, 0) + 1 for number in self._useless(groups, wrong)}
        self._parts |= (left := {number: part for number, part in parts.items() if part < self._cuts[number][1]})
        return bool(left)

    def cut_as_before(self, groups: Sequence[Group], wrong: Sequence[tuple[Group, str]]) -> bool:
        """Take the first part again where no other one was right; return whether something changed.

        Args:
            groups: Groups of the last call of `groups`.
            wrong: Those that are wrong.
        """
        useless = self._useless(groups, wrong) & self._parts.keys()
        for number in useless:
            del self._parts[number]
        return bool(useless)

    def _useless(self, groups: Sequence[Group], wrong: Sequence[tuple[Group, str]]) -> set[int]:
        """Return the operations that cut an axis of which no group came that is right."""
        bad = {group.name for group, _ in wrong}
        roots = [self._roots(group) for group in groups if group.name not in bad]
        right = np.concatenate([*roots, np.zeros(0, np.int64)])
        return {number for number, (labels, _) in self._cuts.items() if not np.isin(self._sets.of(labels), right).any()}

    def keep(self, groups: Sequence[Group]) -> None:
        """Keep all channels of groups from now on."""
        self._kept += [member for group in groups for member in group.members]

    def wrong(self, groups: Sequence[Group]) -> list[tuple[Group, str]]:
        """Return the groups that cannot be pruned, each with the reason, by bisection over trials."""
        draw = torch.Generator().manual_seed(0)
        removal = []
        for number, group in enumerate(groups):
            # Other counts in neighbors: what must be equal would show.
            count = group.units // 2 if number % 2 else max(1, group.units // 3)
            units = torch.randperm(group.units, generator=draw)[: min(count, group.units - 1)]
            removal.append((group, units.sort().values))
        return self.bisected([pair for pair in removal if len(pair[1])])

    def bisected(self, removal: Removal) -> list[tuple[Group, str]]:
        """Return the groups of a removal that are the cause of its error, each with its own.

        Layers of the same place in different blocks are tried together first, since they are right or wrong alike.
        """
        error = self.error(removal) if removal else ""
        if not error:
            return []
        if len(removal) == 1:
            return [(removal[0][0], error)]
        kinds: dict[str, list[tuple[Group, Tensor]]] = {}
        for group, units in removal:
            kinds.setdefault(re.sub(r"\d+", "#", group.name), []).append((group, units))
        parts = list(kinds.values()) if len(kinds) > 1 else [[pair] for pair in removal]
        found = [pair for part in parts for pair in self.bisected(part)]
        return found or [(group, f"with other layers, {error}") for group, _ in removal[: len(removal) // 2]]

    def error(self, removal: Removal) -> str:
        """Return what is wrong with the model without some units: it does not run, or answers otherwise; "": nothing.

        Args:
            removal: Groups of the last call of `groups`, and units.
        """
        try:
            with without(self._model, removal), placed(self._model, Steady(self._seconds)):
                got = outputs_of(called(self._model, self._example))
        except Exception as error:
            return f"the pruned model does not run: {type(error).__name__}: {error}"
        removed = np.concatenate([self._roots(group, units) for group, units in removal])
        labels = TensorLabels(self._of(self._model), self._sets, self._parts)
        with placed(self._model, Absent(labels, self._sets, removed, self._seconds)):
            expected = outputs_of(called(self._model, self._example))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (got, expected)]
        if shapes[0] != shapes[1]:
            return f"the outputs change from {shapes[1]} to {shapes[0]}"
        difference = _difference(got, expected)
        if difference <= self._tolerance:
            return ""
        return (
            f"the pruned model answers otherwise than the whole one whose channels are silenced, by {difference:.1e} of"
            f" the largest output, where rounding explains {self._tolerance:.1e}"
        )

    # ---- the copy ------------------------------------------------------------------------------------------------

    def _running(self, model: nn.Module, example: Any) -> tuple[nn.Module, Any, float]:
        """Return a copy with weights and inputs that show as much as possible, and the tolerance for its outputs.

        Random weights in float64, because weights of zero hide everything; the model's own where it does not run on
        them or does not answer finite numbers.
        """
        plain = copied(model).eval()
        failure: Exception | None = None
        for weights, inputs, exact in (
            (True, True, True),
            (False, True, True),
            (False, False, True),
            (False, False, False),
        ):
            probe = copy.deepcopy(plain)
            multihead_attention.resizable(probe)
            if exact:
                probe = nn.Module.double(probe)  # a layer may have that name
            if weights:
                _randomize(probe)
            batch = on_cpu(example, _random_inputs(model) if inputs else lambda tensor: tensor)
            if exact:
                batch = on_cpu(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
            try:
                outputs = self._run(probe, batch)
                again = self._run(_disturbed(probe), batch)
            except PruneError:
                raise
            except Exception as error:
                failure = error
                continue
            if not any(bool(output.isfinite().all()) and bool(output.any()) for output in outputs):
                continue
            noise = _difference(again, outputs)
            least = 1e-9 if exact else 1e-5
            return probe, batch, min(_LARGEST_TOLERANCE, max(least, 1e3 * noise))
        if failure is not None:
            raise PruneError(
                f"the model does not run on the example: {type(failure).__name__}: {failure}. Expected a tensor, a"
                " tuple of arguments or a dict of named ones that its forward pass takes, in evaluation mode on a CPU"
            ) from failure
        return probe, batch, 1e-5  # all outputs are zero, or none is finite

    def _run(self, model: nn.Module, batch: Any) -> list[Tensor]:
        with placed(model, Steady(self._seconds)):
            return outputs_of(called(model, batch))

    # ---- labels --------------------------------------------------------------------------------------------------

    def _new_labels(self) -> dict[str, Axes]:
        """Return new labels of the tensors of layers that can be rebuilt at another size, by their first names."""
        labels: dict[str, Axes] = {}
        self._names: dict[int, str] = {}
        stored = {id(tensor) for tensor in self._model.state_dict(keep_vars=True).values()}
        for path, module in self._model.named_modules():
            tensors = architecture.own_tensors(module)
            if not architecture.resizable(module) or not _known(module, tensors):
                continue
            for key, tensor in tensors.items():
                name = f"{path}.{key}" if path else key
                if tensor.ndim == 0 or id(tensor) in self._names or id(tensor) not in stored:
                    continue
                if not (tensor.is_floating_point() or tensor.is_complex()):
                    continue
                self._names[id(tensor)] = name
                labels[name] = [self._sets.new(size) if size > 1 else np.zeros(1, np.int64) for size in tensor.shape]
        self._first = int(self._sets.new(1)[0])
        for member in self._kept:
            positions = member.positions.flatten().numpy()
            self._keep(labels[member.tensor][member.axis][positions], "a trial failed")
        return labels

    def _keep(self, positions: Labels, reason: str) -> None:
        self._sets.join(positions, np.zeros_like(positions), reason)

    def _of(self, model: nn.Module) -> Iterator[tuple[Tensor, Axes]]:
        tensors = named_tensors(model)
        return ((tensors[name], axes) for name, axes in self._labels.items())

    def _roots(self, group: Group, units: Tensor | slice = slice(None)) -> Labels:
        """Return the labels of units, one of each that is of one set."""
        found = [
            self._sets.of(self._labels[member.tensor][member.axis][member.positions[units].flatten().numpy()])
            for member in group.members
        ]
        return np.unique(np.concatenate(found))


def _groups(
    model: nn.Module, labels: Mapping[str, Axes], sets: LabelSets, written: Collection[Axis], read: Collection[Axis]
) -> list[Group]:
    """Return the groups: units that touch as many positions of the same tensors, among them outputs of a layer."""
    places: dict[int, list[tuple[str, int, Labels]]] = {}  # by root
    for name, axes in labels.items():
        for axis, positions in enumerate(axes):
            roots = sets.of(positions)
            by_root = np.argsort(roots, kind="stable")
            found, starts = np.unique(roots[by_root], return_index=True)
            for root, part in zip(found.tolist(), np.split(by_root, starts[1:]), strict=True):
                if root != KEPT:
                    places.setdefault(root, []).append((name, axis, part))
    kinds: dict[tuple[tuple[str, int, int], ...], list[list[tuple[str, int, Labels]]]] = {}
    for parts in places.values():
        kinds.setdefault(tuple((name, axis, len(part)) for name, axis, part in parts), []).append(parts)
    tensors, holders = named_tensors(model), holders_of(model)
    tables = {
        (name, 1)
        for name in labels
        if any(isinstance(module, nn.Embedding) for _, module in holders[id(tensors[name])])
    }
    order = {name: number for number, name in enumerate(labels)}
    groups = []
    for kind, units in kinds.items():
        outputs = [number for number, (name, axis, _) in enumerate(kind) if (name, axis) in written]
        outputs = outputs or [number for number, (name, axis, _) in enumerate(kind) if (name, axis) in tables]
        if not outputs or not any((name, axis) in read for name, axis, _ in kind):
            continue
        root = min(outputs, key=lambda number: order[kind[number][0]])
        units.sort(key=lambda parts: int(parts[root][2][0]))
        members = [
            Member(name, axis, torch.from_numpy(np.stack([parts[number][2] for parts in units])))
            for number, (name, axis, _) in enumerate(kind)
        ]
        groups.append(
            Group(kind[root][0].rpartition(".")[0], len(units), (members[root], *members[:root], *members[root + 1 :]))
        )
    groups.sort(key=lambda group: order[group.members[0].tensor])
    names = [group.name for group in groups]
    named = [
        group._replace(name=f"{group.name} ({names[: number + 1].count(group.name)})")
        if names.count(group.name) > 1
        else group
        for number, group in enumerate(groups)
    ]
    return named[::-1]


def _together(groups: Sequence[Group]) -> Group:
    """Return a group each of whose units has as many of the larger ones' as there are for one of the smallest.

    Args:
        groups: Groups whose numbers of units are multiples of the least.
    """
    units = min(group.units for group in groups)
    sizes: dict[str, CodeSize] = {}
    for group in groups:
        for size in group.sizes:
            sizes[size.name] = size._replace(per_unit=size.per_unit * (group.units // units))
    members = [
        member._replace(positions=member.positions.reshape(units, -1)) for group in groups for member in group.members
    ]
    return Group(groups[0].name, units, tuple(members), tuple(sizes.values()))


def holders_of(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return the layers that have a tensor of their own, with their paths, by the tensor's id."""
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for tensor in architecture.own_tensors(module).values():
            holders.setdefault(id(tensor), []).append((path, module))
    return holders


def _known(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the layer's tensors are those of its kind; parametrizations and hooks replace the weight."""
    return "weight" in tensors or getattr(module, "weight", None) is None


def _own_axis(module: nn.Module, tensor: Tensor) -> int:
    """Return the axis of a layer's own channels, its outputs, in one of its tensors."""
    if isinstance(module, nn.Embedding):
        return 1
    if isinstance(module, _ConvTransposeNd) and tensor.ndim > 1:
        return 1
    return 0


def _randomize(model: nn.Module) -> None:
    """Draw new weights, in place: of a layer's usual size, and of norms near one, so that no channel is silent."""
    for module in model.modules():
        resizable = isinstance(module, architecture.RESIZABLE)
        for key, tensor in architecture.own_tensors(module).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, dtype=tensor.dtype)
            if key == "running_var" or (resizable and tensor.ndim == 1 and key == "weight"):
                tensor.data = 1 + 0.5 * noise.tanh()
            elif resizable and tensor.ndim > 1:
                tensor.data = (
                    noise / math.sqrt(max(1, tensor[0].numel())) * (1 if isinstance(module, nn.Embedding) else 1.5)
                )
            elif isinstance(tensor, nn.Parameter) and tensor.ndim == 2 and min(tensor.shape) > 1:
                tensor.data = noise * tensor.numel() ** -0.25
            elif isinstance(tensor, nn.Parameter) or key == "running_mean":
                tensor.data = tensor.data + 0.3 * noise


def _random_inputs(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that draws inputs like an example: of its mean and deviation, or any tokens that are known."""
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            spread = tensor.std(correction=0) if tensor.numel() else tensor.sum()
            return tensor.mean() + torch.randn_like(tensor) * (spread if spread > 0 else 1)
        if tensor.dtype == torch.bool or tensor.numel() == 0:
            return tensor
        low, high = int(tensor.min()), max(int(tensor.max()) + 1, min(tables, default=0))
        return torch.randint(min(low, high - 1), high, tensor.shape, dtype=tensor.dtype)

    return change


def _disturbed(model: nn.Module) -> nn.Module:
    """Return a copy with weights a few units in the last place away: its outputs show the model's own rounding."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        if parameter.is_floating_point():
            size = 4 * torch.finfo(parameter.dtype).eps
            parameter.data = parameter.data * (1 + size * torch.randn(parameter.shape, dtype=parameter.dtype).sign())
    return other


def _difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs of the same shapes, relative to the largest entry of each."""
    worst = 0.0
    for one, two in zip(first, second, strict=True):
        one, two = one.double(), two.double()
        finite = two.isfinite()
        if not torch.equal(finite, one.isfinite()):
            return math.inf
        if finite.any():
            scale = float(two[finite].abs().max())
            worst = max(worst, float((one - two)[finite].abs().max()) / (scale or 1.0))
    return worst
