"""Adapters that are merged into the layers that they adapt, so that a model with them becomes a plain one.

LoRA (E. Hu et al., ICLR 2022, section 4.1) and its relatives add a term to a layer's weight, and can be added to it
once they are trained. The library peft knows how for each kind; what is looked for here is its interface, so that it
need not be imported: a wrapper with `merge_and_unload`, or layers with `base_layer`, `merge` and `get_base_layer`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

from torch import nn

from fedpress.compression.errors import FedpressError


class MergeError(FedpressError, ValueError):
    """Adapters cannot be merged into the model."""


def merged(model: nn.Module) -> nn.Module:
    """Return a plain model that answers as a model with adapters does; the model itself where it has none.

    Law: up to rounding, the answers are the same; the names of the weights are those from before there were adapters,
    and all of them can be trained. A model with adapters is left as it is.

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


def _wraps(module: nn.Module) -> bool:
    return callable(getattr(module, "merge_and_unload", None))


def _adapts(module: nn.Module) -> bool:
    return isinstance(getattr(module, "base_layer", None), nn.Module) and callable(getattr(module, "merge", None))


def _first(root: nn.Module, kind: Callable[[nn.Module], bool]) -> tuple[nn.Module, str, nn.Module] | None:
    """Return the first part of a kind below a module, with its parent and its name there; None: there is none."""
    for parent in root.modules():
        for name, module in parent.named_children():
            if kind(module):
                return parent, name, module
    return None
