"""A copy of a model that is traced, whose channels are put into groups, and that is pruned for trial."""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedpress.compression.models import architecture
from fedpress.compression.models.pruning import code_sizes, trial_copy
from fedpress.compression.models.pruning.channel_flow import Absent, Flow, Steady, placed
from fedpress.compression.models.pruning.channel_labels import KEPT, Axes, Labels, LabelSets, TensorLabels
from fedpress.compression.models.pruning.channel_removal import (
    Axis,
    Group,
    Member,
    Removal,
    called,
    flat,
    named_tensors,
    outputs_of,
    without,
)
from fedpress.compression.models.pruning.code_sizes import CodeSize, Noted, tagged


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
        self._whole = partial(trial_copy.running, model, example, seconds, whole=True)
        self._model, self._example, self._tolerance, self._shortened = trial_copy.running(model, example, seconds)

    def groups(self) -> list[Group]:
        """Return the groups of the model, as far as they are known by now."""
        found = self._followed()
        if any(member.tensor in self._shortened and member.axis == 0 for group in found for member in group.members):
            self._model, self._example, self._tolerance, self._shortened = self._whole()  # rows are channels, too
            found = self._followed()
        return found

    def _followed(self) -> list[Group]:
        self._sets = LabelSets()
        self._labels = self._new_labels()
        labels = TensorLabels(self._of(self._model), self._sets, self._parts)
        mode, noted = Flow(labels, self._seconds), Noted(labels)
        with tagged(self._model), placed(self._model, mode), noted:
            outputs = called(self._model, self._example)
        for output in flat(outputs):
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
        difference = trial_copy.difference(got, expected)
        if difference <= self._tolerance:
            return ""
        return (
            f"the pruned model answers otherwise than the whole one whose channels are silenced, by {difference:.1e} of"
            f" the largest output, where rounding explains {self._tolerance:.1e}"
        )

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
