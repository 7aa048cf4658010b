"""The architecture of a pruned model, as the shapes of its tensors.

A structurally pruned model is the task's model with fewer channels, neurons and blocks of a `Stack`, so its shapes
describe it: `shapes` reads them, and `shrink` cuts a fresh model of the task down to them. Numbers that the model's
code keeps beside its tensors, such as that of its heads, are `sizes`. No code travels with either.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> shrink(model, {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)})
>>> model(torch.zeros(1, 4)).shape, model[0].out_features
(torch.Size([1, 2]), 3)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedpress.compression.errors import FedpressError
from fedpress.compression.models import multihead_attention, vocabulary
from fedpress.compression.models.attention import SelfAttention

Shape = tuple[int, ...]


class ArchitectureError(FedpressError, ValueError):
    """The shapes are not those of a pruned version of this model."""


class UnsupportedLayer(FedpressError, ValueError):
    """A layer of this kind cannot be cut to another size."""


RESIZABLE: tuple[type[nn.Module], ...] = (
    _ConvNd,
    nn.Linear,
    _NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.PReLU,
)
"""Kinds of torch's layers whose channels may be removed, besides multi-head attention."""
_RECORD = "resized_attributes"
"""Attribute of a layer: names of its other attributes that `resize` changed."""


class Stack(nn.Sequential):
    """Sequence of blocks, any of which may be dropped: the output of each has the shape of its input."""

    def keep(self, blocks: Iterable[nn.Module]) -> None:
        """Replace the contents by these blocks, numbered from 0."""
        remaining = list(blocks)
        self._modules.clear()
        for index, block in enumerate(remaining):
            self.add_module(str(index), block)


def shapes(model: nn.Module) -> dict[str, Shape]:
    """Return the shape of every tensor of the model's state dict, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict, each tensor once: tied tensors under their first name.

    Raises:
        UnsupportedLayer: The state dict holds something other than tensors (a module's extra state).
    """
    by_name: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise UnsupportedLayer(f"{name!r} of the state dict is a {type(value).__name__}, expected tensors only")
        if id(value) not in seen:
            seen.add(id(value))
            by_name[name] = value.detach()
    return by_name


def fill(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy arrays into a model's tensors, in place.

    Args:
        model: The model to fill.
        arrays: An array for each tensor, by name, with as many entries.
    """
    for name, tensor in tensors(model).items():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name]).reshape(tensor.shape)))


def resizable(module: nn.Module) -> bool:
    """Return whether the tensors of a layer may shrink: one of a user's own, or one of torch's that can follow them.

    Of torch's own, recurrent layers, bilinear ones and parametrizations cannot.

    Args:
        module: The layer.
    """
    if isinstance(module, (*RESIZABLE, nn.MultiheadAttention)):
        return True
    plain = ("torch.nn.modules.module", "torch.nn.modules.container")
    return not any(
        base.__module__.startswith("torch.nn.") and base.__module__ not in plain for base in type(module).__mro__
    )


def resize(model: nn.Module, name: str, value: int) -> None:
    """Set a number that a layer keeps beside its tensors, and remember that it has changed.

    Args:
        model: Model that has the layer.
        name: Path of the layer and name of the attribute, such as "blocks.0.attention.heads".
        value: New value.
    """
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, attribute, value)
    vars(module)[_RECORD] = tuple(sorted({*vars(module).get(_RECORD, ()), attribute}))


def sizes(model: nn.Module) -> dict[str, int]:
    """Return the numbers that pruning has changed besides shapes, by path and name of the attribute."""
    return {
        f"{path}.{attribute}".lstrip("."): getattr(module, attribute)
        for path, module in model.named_modules()
        for attribute in vars(module).get(_RECORD, ())
    }


def shrink(model: nn.Module, wanted: Mapping[str, Shape], numbers: Mapping[str, int] | None = None) -> None:
    """Cut a model's tensors down to `wanted`, in place; the values of tensors that shrink are left undefined.

    Everything is checked before anything is allocated or changed. Tied tensors stay tied. Blocks at the end of a
    `Stack` of which `wanted` has no tensor are dropped.

    Args:
        model: A fresh model of the task.
        wanted: Shapes by name, as `shapes` returns them for the pruned model.
        numbers: Numbers beside them, as `sizes` returns them for the pruned model; None: there are none.

    Raises:
        ArchitectureError: Names are missing or unknown, a dimension grows or is empty, a layer's tensors disagree, or
            a number is none that the model has, or grows.
        UnsupportedLayer: A layer would change that is not `resizable`.
    """
    stacks = [(module, list(module)) for module in model.modules() if isinstance(module, Stack)]
    tables = _tables(model, wanted)
    try:
        _drop_blocks(model, wanted)
        for table in tables:
            vocabulary.resizable(model, table)
        changed = _checked(model, wanted)
        _check_sizes(model, numbers or {})
    except FedpressError:
        for stack, blocks in stacks:
            stack.keep(blocks)
        if tables:
            vocabulary.whole(model)
        raise
    for module, new in changed:
        for key, tensor in own_tensors(module).items():
            if key in new and tuple(tensor.shape) != new[key]:
                tensor.data = torch.empty(new[key], dtype=tensor.dtype)  # in place, so that a tied tensor stays one
        describe(module)
    for name, value in (numbers or {}).items():
        resize(model, name, value)


def _check_sizes(model: nn.Module, numbers: Mapping[str, int]) -> None:
    modules = dict(model.named_modules())
    for name, value in numbers.items():
        path, _, attribute = name.rpartition(".")
        whole = vars(modules[path]).get(attribute) if path in modules else None
        if type(whole) is not int or not 1 <= value <= whole:
            raise ArchitectureError(
                f"{name!r} should become {value}, but the model's is {whole}: expected a whole number of a layer, from"
                " 1 to what it is; were the shapes made for another model?"
            )


def _tables(model: nn.Module, wanted: Mapping[str, Shape]) -> list[nn.Embedding]:
    """Return the embeddings that have fewer rows than ids in `wanted`: there they say which ids are used."""
    return [
        module
        for path, module in model.named_modules()
        if type(module) is nn.Embedding and f"{path}.{vocabulary.BUFFER}".lstrip(".") in wanted
    ]


def _drop_blocks(model: nn.Module, wanted: Mapping[str, Shape]) -> None:
    """Cut each stack after its last block that has a tensor in `wanted`, or that has no tensors at all."""
    present = tensors(model)
    for path, stack in [(path, module) for path, module in model.named_modules() if isinstance(module, Stack)]:
        count = len(stack)
        while count:
            start = f"{path}.{count - 1}.".lstrip(".")
            if any(name.startswith(start) for name in wanted) or not any(name.startswith(start) for name in present):
                break
            count -= 1
        stack.keep(list(stack)[:count])


def _checked(model: nn.Module, wanted: Mapping[str, Shape]) -> list[tuple[nn.Module, dict[str, Shape]]]:
    """Return the layers that change, with the new shapes of their tensors, after checking that all of `wanted` fits."""
    present = tensors(model)
    if missing := present.keys() - wanted.keys():
        raise ArchitectureError(f"no shape for {sorted(missing)}: were the shapes made for another model?")
    if unknown := wanted.keys() - present.keys():
        raise ArchitectureError(f"the model has no tensor {sorted(unknown)}: were the shapes made for another model?")
    for name, shape in wanted.items():
        whole = tuple(present[name].shape)
        smaller = len(shape) == len(whole) and all(1 <= size <= most for size, most in zip(shape, whole, strict=True))
        if not smaller and shape != whole:
            raise ArchitectureError(
                f"{name!r} should become {shape}, but the model's is {whole}: expected as many dimensions, each at"
                " least 1 and at most the model's; were the shapes made for another model?"
            )
    canonical = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items() if name in present}
    changed: list[tuple[nn.Module, dict[str, Shape]]] = []
    for path, module in model.named_modules():
        local = {key: canonical.get(id(tensor)) for key, tensor in own_tensors(module).items()}
        new = {key: tuple(wanted[name]) for key, name in local.items() if name is not None}
        if any(new[key] != tuple(tensor.shape) for key, tensor in own_tensors(module).items() if key in new):
            if not resizable(module):
                raise UnsupportedLayer(f"layer {path!r} is a {type(module).__name__}, which cannot change its shape")
            _check(path, module, new)
            changed.append((module, new))
        if isinstance(module, SelfAttention):
            _check_heads(path, module, *(wanted[canonical[id(part.weight)]] for part in (module.qkv, module.out)))
    return changed


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a layer itself, by their names in it, without those of its parts."""
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(recurse=False, remove_duplicate=False))}


def _check(path: str, module: nn.Module, new: Mapping[str, Shape]) -> None:
    """Check that the tensors of one layer agree with each other and with its fixed sizes, such as the kernel's."""
    if isinstance(module, nn.MultiheadAttention):
        _check_attention(path, module, new)
    if isinstance(module, vocabulary.Vocabulary | vocabulary.VocabularyHead):
        if new.get(vocabulary.BUFFER, module.used.shape) != module.used.shape:
            raise ArchitectureError(
                f"layer {path!r}: {new[vocabulary.BUFFER]} ids, expected {len(module.used)}: another vocabulary?"
            )
        new = {key: shape for key, shape in new.items() if key == "weight"}
    if not isinstance(module, RESIZABLE):  # what its tensors have to do with each other, only its code knows
        return
    weight = new["weight"] if "weight" in new else next(shape for shape in new.values() if shape)
    transposed = isinstance(module, _ConvTransposeNd)
    channels = weight[0]
    if isinstance(module, _ConvTransposeNd):
        channels = weight[1] * (weight[0] if _depthwise(module) else module.groups)
    expected = weight if isinstance(module, nn.LayerNorm | nn.RMSNorm) else (channels,)
    for key, shape in new.items():
        if key != "weight" and shape not in ((), expected):
            raise ArchitectureError(f"layer {path!r}: {key} {shape} does not fit weight {weight}")
    if isinstance(module, _ConvNd):
        if weight[2:] != tuple(module.kernel_size):
            raise ArchitectureError(f"layer {path!r}: kernel {weight[2:]}, expected {tuple(module.kernel_size)}")
        multiple = 1 if transposed else module.out_channels // module.groups
        if _depthwise(module) and weight[0] % multiple:
            raise ArchitectureError(f"layer {path!r}: {weight[0]} channels, expected a multiple of {multiple}")
        if not _depthwise(module) and weight[0] % module.groups:
            raise ArchitectureError(f"layer {path!r}: {weight[0]} channels cannot be cut into {module.groups} groups")
    if isinstance(module, nn.GroupNorm) and channels % module.num_groups:
        raise ArchitectureError(f"layer {path!r}: {channels} channels cannot be cut into {module.num_groups} groups")


def _check_heads(path: str, module: SelfAttention, qkv: Shape, out: Shape) -> None:
    """Check that whole heads are left, as many in the projections as in the output."""
    if qkv[0] != 3 * out[1] or out[1] % module.head_size:
        raise ArchitectureError(
            f"attention {path!r}: {qkv[0]} rows of qkv and {out[1]} columns of out, expected three times as many rows"
            f" as columns, and columns in whole heads of {module.head_size}"
        )


def _check_attention(path: str, module: nn.MultiheadAttention, new: Mapping[str, Shape]) -> None:
    rows = new["in_proj_weight"][0] if "in_proj_weight" in new else 3 * new["q_proj_weight"][0]
    if rows % (3 * module.head_dim) or new.get("in_proj_bias", (rows,)) != (rows,):
        raise ArchitectureError(
            f"attention {path!r}: {rows} rows of queries, keys and values, expected whole heads of {module.head_dim}"
            " and as many biases"
        )


def _depthwise(module: _ConvNd) -> bool:
    """Return whether each input channel is a group of its own, so that groups go with channels."""
    return 1 < module.groups == module.in_channels


def describe(module: nn.Module) -> None:
    """Update the sizes that one of torch's layers keeps beside its tensors, such as `in_features`.

    Args:
        module: Layer whose tensors have changed their shapes.
    """
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        if _depthwise(module):
            multiple = 1 if isinstance(module, _ConvTransposeNd) else module.out_channels // module.groups
            module.groups = module.in_channels = first // multiple
            module.out_channels = module.groups * second if isinstance(module, _ConvTransposeNd) else first
        elif isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = next(len(t) for t in (module.weight, module.running_mean) if t is not None)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.MultiheadAttention):
        multihead_attention.resizable(module)
        queries = module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight.chunk(3)[0]
        module.num_heads, module.embed_dim = len(queries) // module.head_dim, queries.shape[1]
