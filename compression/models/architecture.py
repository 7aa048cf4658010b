"""The architecture of a pruned model, as the shapes of its tensors.

A structurally pruned model is the task's model with fewer channels, neurons and blocks, so its shapes describe it:
`shapes` reads them, and `shrink` cuts a fresh model of the task down to them. Numbers that the model's code keeps
beside its tensors, such as that of its heads, are `sizes`. No code travels with either.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> shrink(model, {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)})
>>> model(torch.zeros(1, 4)).shape, model[0].out_features
(torch.Size([1, 2]), 3)
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
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

    Everything is checked before anything is allocated or changed. Tied tensors stay tied. Blocks of a list of which
    `wanted` has no tensor are dropped, as by `drop_blocks`.

    Args:
        model: A fresh model of the task.
        wanted: Shapes by name, as `shapes` returns them for the pruned model.
        numbers: Numbers beside them, as `sizes` returns them for the pruned model; None: there are none.

    Raises:
        ArchitectureError: Names are missing or unknown, a dimension grows or is empty, a layer's tensors disagree, or
            a number is none that the model has, or grows.
        UnsupportedLayer: A layer would change that is not `resizable`.
    """
    before = [(module, dict(vars(module)), dict(module.named_children())) for module in model.modules()]
    tables = _tables(model, wanted)
    try:
        drop_blocks(model, _missing_blocks(model, wanted))
        for table in tables:
            vocabulary.resizable(model, table)
        changed = _checked(model, wanted)
        _check_sizes(model, numbers or {})
    except FedpressError:
        if tables:
            vocabulary.whole(model)
        for module, attributes, children in before:
            vars(module).update(attributes)
            for name, child in children.items():
                setattr(module, name, child)
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


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Return the lists of a model that hold blocks (`is_block`), each once, by name."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) == len(set(module))
        and any(map(is_block, module))
    }


def is_block(module: nn.Module) -> bool:
    """Return whether an entry of a list may be a block: it has parts, as a single layer has not, and weights."""
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def drop_blocks(model: nn.Module, places: Mapping[str, Collection[int]]) -> None:
    """Drop blocks of lists, in place, so that the names of all others stay.

    Blocks at the end of a list go, and numbers that say how many it has follow (`_count_anew`). A block with others
    behind it, which only an `nn.Sequential` can lose, becomes an `nn.Identity`.

    Args:
        model: The model.
        places: Places of the blocks in their lists, by the name of the list.
    """
    for path, dropped in places.items():
        module = model.get_submodule(path)
        names = [name for name, _ in module.named_children()]
        count = len(names)
        while names and len(names) - 1 in dropped:
            delattr(module, names.pop())
        if len(names) < count:
            _count_anew(model, path, count, len(names))
        for place in dropped:
            if place < len(names):
                setattr(module, names[place], nn.Identity())


def _missing_blocks(model: nn.Module, wanted: Mapping[str, Shape]) -> dict[str, list[int]]:
    """Return the places of blocks that have tensors, of which none is wanted, by the name of their list."""

    def owners(names: Collection[str]) -> set[str]:
        parts = [name.split(".") for name in names]
        return {".".join(part[:end]) for part in parts for end in range(1, len(part))}

    present, kept = owners(tensors(model).keys()), owners(wanted.keys())
    missing: dict[str, list[int]] = {}
    for path, module in block_lists(model).items():
        children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
        gone = [
            place
            for place, (name, child) in enumerate(children)
            if is_block(child) and name in present and name not in kept
        ]
        if isinstance(module, nn.ModuleList):  # only its end can be missing
            gone = [place for place in gone if set(range(place, len(children))) <= set(gone)]
        if gone and (not path or path in kept):  # the first block of a list stays, or the list is in one that goes
            missing[path] = gone
    return missing


def _count_anew(model: nn.Module, path: str, before: int, after: int) -> None:
    """Set the numbers of blocks that the owner of a list keeps beside it, or in its configuration.

    These are its whole numbers of that value that are called after layers, blocks or depth. A configuration is
    replaced by a copy, since other models may share it: wherever this model has it, or, where several of its numbers
    are meant, for the owner alone.
    """
    owner = model.get_submodule(path.rpartition(".")[0])
    for name in _counts(vars(owner), before):
        setattr(owner, name, after)
    for value in list(vars(owner).values()):
        fields = value if type(value) is dict else getattr(value, "__dict__", None)
        if isinstance(value, nn.Module | Tensor | type) or fields is None or not (names := _counts(fields, before)):
            continue
        changed = copy.copy(value)
        for name in names:
            changed.__setitem__(name, after) if type(changed) is dict else setattr(changed, name, after)
        for module in model.modules() if len(names) == 1 else [owner]:
            for name in [name for name, held in vars(module).items() if held is value]:
                setattr(module, name, changed)


def _counts(fields: Mapping[str, Any], count: int) -> list[str]:
    return [
        name
        for name, value in fields.items()
        if type(value) is int and value == count and any(word in str(name) for word in ("layer", "block", "depth"))
    ]


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
        if new.get(vocabulary.BUFFER, module.rows.shape) != module.rows.shape:
            raise ArchitectureError(
                f"layer {path!r}: {new[vocabulary.BUFFER]} ids, expected {len(module.rows)}: another vocabulary?"
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
