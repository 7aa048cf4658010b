"""Initial weights of a run: `init` and `base` in a scenario, and what can be trained at all.

Everything is checked before the first round. The files of `init` must hold each tensor of the model that is trained,
and no other: a model that is filled in part would be trained without a word about the rest. Those of `base` hold what
was trained before, elsewhere: whatever the model has of it is filled, and the log says what is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING, getLogger
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpress.compression import errors, safetensors_files
from fedpress.compression.models import adapters, pretrained
from fedpress.compression.safetensors_files import few
from fedpress.compression.tensors.layout import BUFFER_NAMES, Layout

_BFLOAT16 = "return model.float(). `training.precision: bfloat16` trains in bfloat16 from float32 weights"
_COMPLEX = (
    "a constant is a buffer with persistent=False, which every instance makes for itself; a parameter, or what changes,"
    " two real numbers: torch.view_as_complex(pairs)"
)
_SHOWN = 5
"""Names that an error suggests."""


class InitialWeightsError(errors.FedpressError, ValueError):
    """The initial weights cannot be used; the text says what was found, and what is expected."""


def load(model: nn.Module, path: Path) -> None:
    """Copy the weights and buffers of `init` into a model, by the names that `pretrained.matches` finds.

    Of tied tensors the file may hold one. Parameters that are not trained may be absent, and stay as they are. Floats
    of another precision are converted. The log says each of these.

    Args:
        model: Changed in place.
        path: A safetensors file, or a folder of them.

    Raises:
        InitialWeightsError: The file is absent, of another format, or damaged; or it is not of this model: tensors are
            missing or left over, or differ in shape or kind.
    """
    try:
        weights = pretrained.Weights(path)
    except safetensors_files.WeightsError as error:
        raise InitialWeightsError(f"init: {error}") from None
    state = model.state_dict(keep_vars=True)
    try:
        sources = pretrained.matches(state, weights)
    except safetensors_files.WeightsError as error:
        raise InitialWeightsError(f"init: {path}: {error}") from None
    renamed = [(name, source) for name, source in sources.items() if name != source]
    left_over = [name for name in weights if name not in set(sources.values())]
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    for names in tied.values():
        _source_of_tied(weights, names, sources)
    missing = [name for name in state if name not in sources]
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    problems = [
        *_other_names([name for name in missing if name not in frozen], left_over, len(state), len(weights)),
        *(problem for name, source in sources.items()
          if (problem := pretrained.difference(source, weights[source], state[name]))),
    ]  # fmt: skip
    if problems:
        raise InitialWeightsError("\n  ".join([f"init: {path} is not of this model:", *problems]))
    if missing:
        _log("init: %d parameters that are not trained are not in %s, and stay: %s", len(missing), path, few(missing))
    if renamed:
        _log("init: the names in %s are not quite the model's: %r is filled from %r, and so on", path, *renamed[0])
    converted: dict[str, list[str]] = {}
    with torch.no_grad():
        for name, source in sources.items():
            given, tensor = weights[source], state[name]
            if given.dtype != tensor.dtype:
                converted.setdefault(f"{_dtype(given)} to {_dtype(tensor)}", []).append(name)
            tensor.copy_(given)
            if not torch.equal(tensor.to(given.dtype), given) and not given.is_floating_point():
                raise InitialWeightsError(f"init: {path}: {name!r} has values beyond the range of {_dtype(tensor)}")
    for change, names in converted.items():
        _log("init: %d tensors are converted from %s: %s", len(names), change, few(names))


def load_base(model: nn.Module, path: Path, sha256: str | None) -> None:
    """Copy the pretrained weights of `base` into the tensors of a model that they belong to.

    Args:
        model: Changed in place.
        path: A safetensors file, or a folder of them.
        sha256: What `safetensors_files.sha256` must give; None: anything.

    Raises:
        BaseError: The file has another hash.
        InitialWeightsError: It is absent, damaged, or not of this model.
    """
    try:
        if sha256 is not None and (own := safetensors_files.sha256(path)) != sha256.lower():
            raise errors.BaseError(
                f"base: SHA-256 {own}, expected {sha256.lower()}, in {path}: another release of the model, or"
                " changed? Fetch the federation's files, or name their place: `base` in the settings of `fedpress"
                " client`, `base.path` in the scenario"
            )
        weights = pretrained.Weights(path)
        elsewhere = _adapted_elsewhere(model, weights)
        before = adapters.altered(model, elsewhere)
        filled = pretrained.fill(model, weights)
    except safetensors_files.WeightsError as error:
        raise InitialWeightsError(f"base: {error}") from None
    after = adapters.altered(model, elsewhere)
    if wrong := [layer for layer in after if layer not in before or adapters.made_of_weights(model)]:
        raise InitialWeightsError(
            f"base: the adapters of {few(wrong)} were made of other weights than those of {path}, and would begin with"
            " another answer than the base's. Adapters that are made of the weights that they adapt (DoRA, tokens that"
            " are trained) need them before: load them in the task's model(), as from_pretrained does. Where adapters"
            " take a part out of the weights (init_lora_weights of PiSSA, OLoRA, LoftQ), leave out `base` as well, and"
            " the model is sent whole once"
        )
    if after:
        getLogger("flwr").warning(
            "base: the adapters of %s are not 0 at first, so the model does not begin as the base", few(after)
        )
    _log(
        "base: %d of the model's %d tensors are those of %s; the others are the task's own%s%s",
        len(filled.filled), len(filled.filled) + len(filled.left), path,
        f": {few(filled.left)}" if filled.left else "",
        f"; the file's {few(filled.unused)} are not used" if filled.unused else "",
    )  # fmt: skip
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    if untaught := [name for name in filled.left if name in frozen]:
        getLogger("flwr").warning(
            "base: %d parameters that are not trained are not in %s, and stay what model() made them: %s. Have they"
            " other names there, or should they be trained?", len(untaught), path, few(untaught),
        )  # fmt: skip


def _adapted_elsewhere(model: nn.Module, weights: pretrained.Weights) -> list[str]:
    """Return the names of layers with adapters whose weight is not that of the base.

    Args:
        model: The task's model, before it is filled.
        weights: The base.
    """
    adapted = adapters.adapted(model)
    if not adapted:
        return []
    state = model.state_dict(keep_vars=True)
    sources = {id(state[name]): source for name, source in pretrained.matches(state, weights).items()}
    return [
        layer
        for layer, weight in adapted.items()
        if id(weight) in sources and not torch.equal(weights[sources[id(weight)]].to(weight.dtype), weight)
    ]


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
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InitialWeightsError(
            f"task {task!r}: {few(others)} in state_dict() of its model() is no tensor (get_extra_state), which no"
            " update and no checkpoint carries; make it a buffer, or leave it out"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    for unsent, remedy in (
        ([name for name, dtype in dtypes.items() if dtype == torch.bfloat16], _BFLOAT16),
        ([name for name, dtype in dtypes.items() if dtype.is_complex], _COMPLEX),
    ):
        if unsent:
            raise InitialWeightsError(
                f"task {task!r}: {_dtype(state[unsent[0]])} in its model(), which Flower's messages do not carry:"
                f" {few(unsent)}; {remedy}"
            )
    bad = [
        name
        for name, tensor in state.items()
        if (name in parameters or name.rpartition(".")[2] in BUFFER_NAMES) and not torch.isfinite(tensor.detach()).all()
    ]
    if bad:
        raise InitialWeightsError(
            f"task {task!r}: the initial model holds NaN or infinity in {few(bad)}; did its own training diverge, or"
            " is a tensor made by torch.empty and never filled?"
        )
    layout = Layout.of(model)
    if layout.size == 0:
        frozen = f": all {len(parameters)} have requires_grad=False" if parameters else ""
        raise InitialWeightsError(f"task {task!r}: its model has no parameter that is trained{frozen}")
    wide = [spec.name for spec in layout.parameters if spec.dtype == "float64"]
    if wide:
        with_infinity = [name for name in wide if not torch.isfinite(state[name].detach().float()).all()]
        if with_infinity:
            raise InitialWeightsError(f"task {task!r}: {few(with_infinity)} has values beyond the range of float32")
        getLogger("flwr").log(
            WARNING, "%s: float64; between server and clients all weights are rounded to float32", few(wide)
        )


def _source_of_tied(weights: Mapping[str, Tensor], names: list[str], sources: dict[str, str]) -> None:
    """Give every name of a tied tensor the source of one of them, once those that there are hold the same values."""
    present = [name for name in names if name in sources]
    for name in present[1:]:
        if not torch.equal(weights[sources[name]], weights[sources[present[0]]]):
            raise InitialWeightsError(
                f"init: {present[0]!r} and {name!r} differ, and are one tensor in the model (tied)"
            )
    for name in names if present else ():
        sources.setdefault(name, sources[present[0]])


def _other_names(missing: list[str], left_over: list[str], wanted: int, found: int) -> Iterable[str]:
    if missing:
        yield f"{len(missing)} of its {wanted} tensors are missing: {few(missing)}"
    if left_over:
        yield f"{len(left_over)} of the file's {found} tensors are unknown: {few(left_over)}"
    pairs = [(name, near[0]) for name in left_over if (near := difflib.get_close_matches(name, missing, 1, 0.7))]
    if pairs:
        yield f"did you mean {', '.join(f'{near!r} by {name!r}' for name, near in pairs[:_SHOWN])}?"


def _log(text: str, *values: object) -> None:
    getLogger("flwr").log(INFO, text, *values)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
