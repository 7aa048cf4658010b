"""Which parameters of a model are trained: patterns over their names, and what is frozen with the others.

>>> model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 2)})
>>> select(model, ["head.*"])
>>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
['head.weight', 'head.bias']
>>> list(frozen_statistics(model))
['body.1']
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedpress.compression import suggest
from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors.layout import frozen_modules

_SHOWN = 8
"""Most names that an error lists."""


class TrainableError(FedpressError, ValueError):
    """A pattern of `trainable` matches no parameter of the model that can be trained."""


def select(model: nn.Module, patterns: Sequence[str]) -> None:
    """Set which parameters of a model are trained: those that a pattern matches, and no others.

    Law: the same model and patterns select the same parameters in every process. A tensor with several names (tied) is
    trained if one of them matches.

    Args:
        model: Its `requires_grad` are set, whatever they were.
        patterns: Patterns over the names of parameters, with `*`, `?` and `[...]` as in names of files; `*` takes dots.

    Raises:
        TrainableError: A pattern matches no parameter, or integers only.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    chosen: set[int] = set()
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        floating = [name for name in matched if named[name].is_floating_point()]
        if not floating:
            raise TrainableError(_unmatched(pattern, matched, list(named), type(model).__name__))
        chosen |= {id(named[name]) for name in floating}
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in chosen)


def frozen_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with running statistics whose parameters are all frozen, by name.

    Those without any are frozen with the module around them (`layout.frozen_modules`).

    Args:
        model: The model.
    """
    frozen = frozen_modules(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, _NormBase) and name in frozen}


def _unmatched(pattern: str, matched: Sequence[str], names: Sequence[str], model: str) -> str:
    if matched:
        return f"trainable: {pattern!r} matches {matched[0]!r} alone, which holds integers and cannot be trained"
    if any(fnmatchcase(name, f"*.{pattern}") or fnmatchcase(name, pattern + ".*") for name in names):
        whole = next(p for p in (f"*.{pattern}", f"{pattern}.*") if any(fnmatchcase(name, p) for name in names))
        likely = f"; a pattern is for the whole name: did you mean {whole!r}?"
    else:
        parts = list(dict.fromkeys(part for name in names for part in (name, *name.split(".")) if not part.isdigit()))
        near = suggest.nearest(max(pattern.split("."), key=len).strip("*"), parts) or suggest.nearest(pattern, names)
        likely = f"; did you mean {near!r}?" if near else ""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"trainable: {pattern!r} matches no parameter of {model}, which has {shown}{likely}"
