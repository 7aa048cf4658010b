"""Initial weights of a run: from a safetensors file (`init` in a scenario), and what can be trained at all.

Everything is checked before the first round. A file must hold each tensor of the model and no other: a model that is
filled in part would be trained without a word about the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING, getLogger
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedpress.compression import errors
from fedpress.compression.tensors.layout import BUFFER_NAMES, Layout

_PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile", "model.": "a wrapper around the model"}
"""Prefixes of names that tools add -> the tool."""

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file, as torch.save and numpy.savez write them",
    b"\x80": "a pickle, as torch.save once wrote them",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"GGUF": "a GGUF file",
}
"""First bytes of a file -> what it is."""

_SHOWN = 5
"""Names that an error lists."""


class InitialWeightsError(errors.FedpressError, ValueError):
    """The initial weights cannot be used; the text says what was found, and what is expected."""


def load(model: nn.Module, path: Path) -> None:
    """Copy the weights and buffers of a safetensors file into a model.

    Of tied tensors the file may hold one. Floats of another precision are converted, and the log says so.

    Args:
        model: Changed in place.
        path: Path of the file.

    Raises:
        InitialWeightsError: The file is absent, of another format, or damaged; or it is not of this model: tensors are
            missing or left over, or differ in shape or kind.
    """
    found = _read(path)
    state = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    filled = dict(found)
    for names in tied.values():
        _fill_tied(path, names, filled)
    problems = [*_other_names(list(state), filled, found), *_other_shapes(state, filled)]
    if problems:
        raise InitialWeightsError("\n  ".join([f"init: {path} is not of this model:", *problems]))
    converted: dict[str, list[str]] = {}
    with torch.no_grad():
        for name, tensor in state.items():
            given = filled[name]
            if given.dtype != tensor.dtype:
                converted.setdefault(f"{_dtype(given)} to {_dtype(tensor)}", []).append(name)
            tensor.copy_(given)
            if not torch.equal(tensor.to(given.dtype), given) and not given.is_floating_point():
                raise InitialWeightsError(f"init: {path}: {name!r} has values beyond the range of {_dtype(tensor)}")
    for change, names in converted.items():
        getLogger("flwr").log(INFO, "init: %d tensors are converted from %s: %s", len(names), change, _few(names))


def check(model: nn.Module, task: str) -> None:
    """Check that a model can be held and trained as it is, and log what is rounded.

    Args:
        model: The initial model.
        task: Name of the task, for errors.

    Raises:
        InitialWeightsError: A parameter, a running mean or variance is NaN or infinite, no parameter is trained, or one
            has a dtype that no message carries.
    """
    state = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dtypes = {name: tensor.dtype for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if unsent := [name for name, dtype in dtypes.items() if dtype == torch.bfloat16 or dtype.is_complex]:
        raise InitialWeightsError(
            f"task {task!r}: {_few(unsent)} of its model() is {_dtype(state[unsent[0]])}, which Flower's messages do"
            " not carry; return model.float(). `training.precision: bfloat16` trains in bfloat16 from float32 weights"
        )
    bad = [
        name
        for name, tensor in state.items()
        if (name in parameters or name.rpartition(".")[2] in BUFFER_NAMES) and not torch.isfinite(tensor.detach()).all()
    ]
    if bad:
        raise InitialWeightsError(
            f"task {task!r}: the initial model holds NaN or infinity in {_few(bad)}; did its own training diverge, or"
            " is a tensor made by torch.empty and never filled?"
        )
    layout = Layout.of(model)
    if layout.size == 0:
        frozen = f": all {len(layout.frozen)} have requires_grad=False" if layout.frozen else ""
        raise InitialWeightsError(f"task {task!r}: its model has no parameter that is trained{frozen}")
    wide = [spec.name for spec in layout.parameters if spec.dtype == "float64"]
    if wide:
        with_infinity = [name for name in wide if not torch.isfinite(state[name].detach().float()).all()]
        if with_infinity:
            raise InitialWeightsError(f"task {task!r}: {_few(with_infinity)} has values beyond the range of float32")
        getLogger("flwr").log(
            WARNING, "%s: float64; between server and clients all weights are rounded to float32", _few(wide)
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise InitialWeightsError(f"init: there is no file {path}")
    if not path.is_file():
        raise InitialWeightsError(f"init: {path} is no file; expected a safetensors file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        safetensors_header = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size
        other = next((what for mark, what in _OTHER_FORMATS.items() if start.startswith(mark)), None)
        if other and not safetensors_header:
            raise InitialWeightsError(
                f"init: {path} is {other}; expected a safetensors file. Pickles can run any code, so none is loaded"
                ' here. To convert a file that you trust: safetensors.torch.save_file(torch.load("FILE.pt",'
                ' weights_only=True), "FILE.safetensors")'
            )
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise InitialWeightsError(f"init: cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, KeyError) as error:
        raise InitialWeightsError(f"init: {path} is no safetensors file, or damaged: {error}") from None


def _fill_tied(path: Path, names: list[str], filled: dict[str, Tensor]) -> None:
    """Give every name of a tied tensor the values that one of them has in the file."""
    present = [name for name in names if name in filled]
    for name in present[1:]:
        if not torch.equal(filled[name], filled[present[0]]):
            raise InitialWeightsError(
                f"init: {path}: {present[0]!r} and {name!r} differ, and are one tensor in the model (tied weights)"
            )
    for name in names if present else ():
        filled.setdefault(name, filled[present[0]])


def _other_names(wanted: list[str], filled: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterable[str]:
    missing = [name for name in wanted if name not in filled]
    left_over = [name for name in found if name not in wanted]
    if missing:
        yield f"{len(missing)} of its {len(wanted)} tensors are missing: {_few(missing)}"
    if left_over:
        yield f"{len(left_over)} of the file's {len(found)} tensors are unknown: {_few(left_over)}"
    for prefix, tool in _PREFIXES.items():
        if left_over and set(missing) <= {name.removeprefix(prefix) for name in left_over if name.startswith(prefix)}:
            if missing:
                yield f"its names begin with {prefix!r}, as {tool} writes them; remove that from the names"
                return
    pairs = [(name, near[0]) for name in left_over if (near := difflib.get_close_matches(name, missing, 1, 0.7))]
    if pairs:
        yield f"did you mean {', '.join(f'{near!r} by {name!r}' for name, near in pairs[:_SHOWN])}?"


def _other_shapes(state: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> Iterable[str]:
    for name, tensor in state.items():
        given = filled.get(name)
        if given is None:
            continue
        if given.shape != tensor.shape:
            yield f"{name!r} has shape {tuple(given.shape)}, the model's has {tuple(tensor.shape)}"
        elif given.is_floating_point() != tensor.is_floating_point():
            yield f"{name!r} is {_dtype(given)}, the model's is {_dtype(tensor)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
