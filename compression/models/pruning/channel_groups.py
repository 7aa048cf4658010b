"""Groups of a model that can only be pruned together: channels, neurons, feed-forward units, attention heads.

The parts of a group (a channel, the batch norm behind it, the columns of the next layer, both ends of a residual
connection; for a head its rows of queries, keys and values and its columns of the output) are found with
Torch-Pruning's dependency graph:
G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph: Toward Any Structural Pruning", CVPR 2023,
section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fedpress.compression.models import architecture
from fedpress.compression.models.attention import SelfAttention


class Group(NamedTuple):
    """Channels with everything that depends on them.

    Attributes:
        members: Torch-Pruning's group of all the channels: every layer affected, and the indices there.
        units: Channels of the root by unit of removal, int64 (units, channels of a unit): a channel; for grouped
            convolutions one channel of each block; an attention head.
    """

    members: Any
    units: Tensor


def find(model: nn.Module, example: Tensor, ignored: Collection[nn.Module] = ()) -> tuple[Any, list[Group]]:
    """Return the dependency graph of a model, and its prunable groups in the order of Torch-Pruning.

    Outputs of the model, layers of a kind that cannot be rebuilt at another size, and tied layers are left out.

    Args:
        model: Model in evaluation mode; traced, not changed.
        example: Batch of inputs, (N, ...).
        ignored: Layers whose own channels are kept.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside layers, which are kept whole below
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    tied = _tied(model)
    attentions = {module.qkv: module for module in model.modules() if isinstance(module, SelfAttention)}
    roots = [torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR]
    # A list, because the output layers must be identified before anything is removed.
    prunable = [
        group
        for group in graph.get_all_groups(ignored_layers=list(ignored), root_module_types=roots)
        if _prunable(group, tied) and _has_consumer(group)
    ]
    groups = []
    for group in prunable:
        attention = next((attentions[dep.target.module] for dep, _ in group if dep.target.module in attentions), None)
        if attention is None or not _writes(group, attention.qkv):
            module, function = group[0].dep.target.module, group[0].dep.handler
            channels, blocks = graph.get_out_channels(module), _blocks(group)
            units = torch.arange(channels).reshape(blocks, -1).T
        else:  # rooted at the output's columns, where a head is contiguous, while in qkv it is in three parts
            module, function = attention.out, torch_pruning.prune_linear_in_channels
            channels = attention.heads * attention.head_size
            units = torch.arange(channels).reshape(-1, attention.head_size)
        groups.append(Group(graph.get_pruning_group(module, function, list(range(channels))), units))
    return graph, groups


def remove(graph: Any, group: Group, worst: Tensor) -> None:
    """Remove units from the model with everything that depends on them, in place.

    Args:
        graph: Dependency graph of the model.
        group: Group of the units.
        worst: Indices of the units, int64 (k,).
    """
    root = group.members[0].dep
    if channels := group.units[worst].flatten().tolist():
        graph.get_pruning_group(root.target.module, root.handler, sorted(channels)).prune()


def _writes(group: Any, layer: nn.Module) -> bool:
    """Return whether the group's channels are outputs of the layer rather than inputs."""
    return any(
        dep.target.module is layer and dep.handler == torch_pruning.prune_linear_out_channels for dep, _ in group
    )


def _prunable(group: Any, tied: set[nn.Module]) -> bool:
    """Return whether all layers of the group can be rebuilt at another size; the graph's own nodes hold nothing."""
    for dep, channels in group:
        part = dep.target.module
        if not isinstance(part, nn.Module):  # a bare parameter
            return False
        if channels and _channels(part, dep.handler) <= max(channels):  # the graph mixes up what is concatenated
            return False
        if isinstance(part, _ConvTransposeNd) and part.groups > 1:  # the graph mixes up their groups
            return False
        if part in tied or (any(True for _ in part.parameters()) and not isinstance(part, architecture.RESIZABLE)):
            return False
    return True


def _channels(part: nn.Module, handler: Any) -> float:
    """Return the number of channels where `handler` prunes a convolution or a linear layer; infinity elsewhere."""
    prunes_inputs = handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
    if isinstance(part, torch_pruning.ops.TORCH_CONV):
        return float(part.in_channels if prunes_inputs else part.out_channels)
    if isinstance(part, nn.Linear):
        return part.in_features if prunes_inputs else part.out_features
    return float("inf")


def _has_consumer(group: Any) -> bool:
    """Return whether a layer has the group's channels as inputs; otherwise they are outputs of the model."""
    return any(
        dep.handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
        for dep, _ in group
    )


def _blocks(group: Any) -> int:
    """Return the number of equal blocks into which grouped convolutions and group norms divide the channels."""
    blocks = 1
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.GroupNorm):
            blocks = max(blocks, module.num_groups)
        elif isinstance(module, torch_pruning.ops.TORCH_CONV) and module.groups < module.in_channels:
            blocks = max(blocks, module.groups)
    return blocks


def _tied(model: nn.Module) -> set[nn.Module]:
    """Return the layers that share a parameter with another: the graph would prune them separately and untie them."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    return {module for sharing in holders.values() if len(sharing) > 1 for module in sharing}
