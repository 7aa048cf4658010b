"""What the checks of a scenario have in common: their error, its texts, and code of a task under watch."""

from __future__ import annotations

import random
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.task import Task

NAMED = 5
"""Most clients, labels or parameters that a text names."""
_HERE = Path(__file__).resolve().parents[2]
INSTALLED = (
    *(_HERE / part for part in ("client", "compression", "server", "simulations")),
    *(
        Path(place).resolve()
        for name, place in sysconfig.get_paths().items()
        if name in ("stdlib", "purelib", "platlib")
    ),
)
"""Folders of code that is not the user's."""


class CheckError(FedpressError, ValueError):
    """Data, model and settings do not go together; the text names the part, what was given, and what is expected."""


@contextmanager
def by_task(task: Task | str, what: str) -> Iterator[None]:
    """Turn an error of a task's code into one that names it; a module that is missing is reported elsewhere."""
    try:
        yield
    except (FedpressError, ModuleNotFoundError):
        raise
    except Exception as error:
        name = task if isinstance(task, str) else task.name
        raise CheckError(
            f"task {name!r}: {what} raised {type(error).__name__}: {first_line(error)}{place(error)}"
        ) from error


def place(error: BaseException) -> str:
    """Return where an error was raised in code that is neither fedpress's nor an installed package's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.exists() and not any(path.is_relative_to(folder) for folder in INSTALLED):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; of one without a text its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, after its type where the text is but a key."""
    return f"KeyError: {error}" if isinstance(error, KeyError) else first_line(error)


def form(value: object) -> str:
    """Return what a value is, in words: a tensor's dtype and shape, a mapping's keys, anything else's type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def some(found: Sequence[object], noun: str) -> str:
    """Return a number of things and the first few of them, such as "3 clients (0, 4, 7)"."""
    more = ", ..." if len(found) > NAMED else ""
    plural = "s" if len(found) > 1 else ""
    return f"{len(found):,} {noun}{plural} ({', '.join(map(str, found[:NAMED]))}{more})"


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Run a block with all global generators in a state of its own, and restore them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
