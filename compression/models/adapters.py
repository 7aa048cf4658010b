"""Adapters that are merged into the layers that they adapt, so that a model with them becomes a plain one.

LoRA (E. Hu et al., ICLR 2022, section 4.1) and its relatives add a term to a layer's weight, and can be added to it
once they are trained. The library peft knows how for each kind; what is looked for here is its interface, so that it
need not be imported: a wrapper with `merge_and_unload`, or layers with `base_layer`, `merge` and `get_base_layer`.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpress.compression.errors import FedpressError


class MergeError(FedpressError, ValueError):
    """Adapters cannot be merged into the model."""


def merged(model: nn.Module) -> nn.Module:
    """Return a plain model that answers as a model with adapters does; the model itself where it has none.

    Law: up to rounding, the answers are the same; the names of the weights are those from before there were adapters,
    and all of them can be trained. A model with adapters is left as it is. A weight that was tied to another layer's,
    as an embedding to the last layer, is one of its own afterwards if adapters change it.

    Args:
        model: The model.

    Raises:
        MergeError: Its adapters are not terms of a weight, such as learned prompts.
    """
    if prompts := [
        module for module in model.modules() if isinstance(getattr(module, "prompt_encoder", None), nn.Module)
    ]:
        raise MergeError(
            f"the adapters of {type(prompts[0]).__name__} are learned prompts, which cannot be merged into weights;"
            " LoRA, DoRA, LoHa and IA3 can"
        )
    if not any(_wraps(module) or _adapts(module) for module in model.modules()):
        return model
    plain = nn.ModuleList([copy.deepcopy(model)])  # so that the model itself has a parent, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of merging into rounded or tied weights, which the law covers
        owners = _owners(plain)
        for adapted in [module for module in plain.modules() if _adapts(module)]:
            _untie(adapted.get_base_layer(), owners)  # type: ignore[operator]
        while wrapper := _first(plain, _wraps):
            parent, name, module = wrapper
            try:
                setattr(parent, name, module.merge_and_unload())  # type: ignore[operator]
            except (NotImplementedError, ValueError) as error:
                raise MergeError(f"the adapters of {type(module).__name__} cannot be merged: {error}") from error
        while layer := _first(plain, _adapts):
            parent, name, module = layer
            module.merge()  # type: ignore[operator]
            setattr(parent, name, module.get_base_layer())  # type: ignore[operator]
    whole: nn.Module = plain[0]
    return whole.requires_grad_(True)


def adapted(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight of each layer with adapters, by the layer's name.

    Args:
        model: The model.
    """
    layers = {name: module.get_base_layer() for name, module in model.named_modules() if _adapts(module)}
    weights = {name: getattr(layer, "weight", None) for name, layer in layers.items()}
    return {name: weight for name, weight in weights.items() if isinstance(weight, nn.Parameter)}


def made_of_weights(model: nn.Module) -> bool:
    """Return whether a configuration of peft says that adapters are made of the weights, as PiSSA's are.

    Args:
        model: The model.
    """
    configs = [config for module in model.modules() for config in dict(getattr(module, "peft_config", {})).values()]
    return any(isinstance(getattr(config, "init_lora_weights", None), str) for config in configs)


def altered(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the names of those of some layers whose adapters change the weight.

    Adapters that begin as nothing, as LoRA's do by default, change none of them before they are trained.

    Args:
        model: The model; left as it is.
        layers: Names of layers with adapters.
    """
    found = []
    for name in layers:
        layer: Any = copy.deepcopy(model.get_submodule(name))
        before = layer.get_base_layer().weight.detach().clone()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layer.merge()
        except (NotImplementedError, ValueError):
            continue  # such adapters are no terms of a weight
        if not _close(layer.get_base_layer().weight.detach(), before):
            found.append(name)
    return found


def _close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


def _owners(model: nn.Module) -> Counter[int]:
    """Return in how many modules each parameter is, by its id."""
    return Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))


def _untie(layer: nn.Module, owners: Mapping[int, int]) -> None:
    """Give a layer parameters of its own where others have the same: they are not to change with it."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if owners[id(parameter)] > 1:
            setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))


def _wraps(module: nn.Module) -> bool:
    return callable(getattr(module, "merge_and_unload", None))


def _adapts(module: nn.Module) -> bool:
    methods = (getattr(module, name, None) for name in ("merge", "get_base_layer"))
    return isinstance(getattr(module, "base_layer", None), nn.Module) and all(map(callable, methods))


def _first(root: nn.Module, kind: Callable[[nn.Module], bool]) -> tuple[nn.Module, str, nn.Module] | None:
    """Return the first part of a kind below a module, with its parent and its name there; None: there is none."""
    for parent in root.modules():
        for name, module in parent.named_children():
            if kind(module):
                return parent, name, module
    return None
