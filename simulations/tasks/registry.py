"""Registry of tasks: makes a task from its name and options. Names are checked without torch."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpress.compression.errors import FedpressError

if TYPE_CHECKING:
    from fedpress.compression.models.task import Task

BUILT_IN = {
    "digits": "fedpress.simulations.tasks.digits:Digits",
    "fashion-mnist": "fedpress.simulations.tasks.fashion_mnist:FashionMNIST",
    "text": "fedpress.simulations.tasks.text:Text",
    "verses": "fedpress.simulations.tasks.verses:Verses",
}
"""Name of a built-in task -> its class, as "module:Class"."""


class TaskError(FedpressError, ValueError):
    """A task cannot be made: unknown name, module or option, or its data are absent or damaged."""


def names() -> list[str]:
    """Return the names of the built-in tasks."""
    return list(BUILT_IN)


def check_name(name: str) -> None:
    """Check that `name` is a built-in task or has the form "module:Class". Imports nothing.

    Raises:
        ValueError: It is neither; the error gives what is allowed and the nearest built-in task.
    """
    module, colon, attribute = name.partition(":")
    if name in BUILT_IN or (colon and attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        return
    near = difflib.get_close_matches(name, BUILT_IN, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"expected {', '.join(BUILT_IN)} or a class of your own as 'module:Class'{hint}")


def create(name: str, options: Mapping[str, Any] | None = None, folder: str | Path | None = None) -> Task:
    """Make a task.

    Args:
        name: A built-in task, or "module:Class" of a subclass of `fedpress.compression.models.task.Task`.
        options: Keyword arguments of the class.
        folder: Folder that is searched for the module before the Python path.

    Raises:
        TaskError: No such task, module or class, or an option that the class does not take.
    """
    options = dict(options or {})
    try:
        check_name(name)
    except ValueError as error:
        raise TaskError(f"task {name!r}: {error}") from None
    task_class = _find(BUILT_IN.get(name, name), folder)
    _check_options(name, task_class, options)
    return task_class(**options)


def _find(path: str, folder: str | Path | None) -> type[Task]:
    from fedpress.compression.models.task import Task

    name, _, attribute = path.partition(":")
    try:
        module = load_module(name, folder)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TaskError(
                f"task {path!r}: there is no module {name!r} in {folder or Path.cwd()} or on the Python path;"
                " is the scenario beside the task's file?"
            ) from None
        raise
    task_class = getattr(module, attribute, None)
    if task_class is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Task)]
        near = difflib.get_close_matches(attribute, classes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TaskError(f"task {path!r}: {module.__file__} has no class {attribute!r}{hint}")
    if not (inspect.isclass(task_class) and issubclass(task_class, Task)):
        raise TaskError(f"task {path!r}: {attribute} is not a subclass of fedpress.compression.models.task.Task")
    return task_class


def load_module(name: str, folder: str | Path | None) -> Any:
    """Import a user's module.

    Args:
        name: Dotted name.
        folder: Folder that is searched before the Python path; None: the Python path alone.

    Raises:
        TaskError: The module in the folder has the name of one of the standard library.
        ModuleNotFoundError: There is no such module.
    """
    if folder is None:
        return importlib.import_module(name)
    search_path = str(Path(folder).resolve())
    top = name.partition(".")[0]
    beside = [Path(search_path, f"{top}.py"), Path(search_path, top, "__init__.py")]
    if any(map(Path.exists, beside)):
        if top in sys.stdlib_module_names:
            raise TaskError(f"module {top!r} has the name of a standard-library module; rename {beside[0]}")
        loaded = sys.modules.get(top)
        if loaded is not None and Path(loaded.__file__ or "").resolve() not in beside:
            # Two scenarios in one process may each have a task.py of their own; drop the other one's.
            for stale in [key for key in sys.modules if key == top or key.startswith(f"{top}.")]:
                del sys.modules[stale]
    if search_path in sys.path:
        sys.path.remove(search_path)
    sys.path.insert(0, search_path)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _check_options(name: str, task_class: type[Task], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(task_class).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [option for option in options if option not in parameters]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        allowed = ", ".join(parameters) or "none"
        raise TaskError(f"task.{unknown[0]}: task {name!r} does not take it; its options are: {allowed}{hint}")
    required = [key for key, value in parameters.items() if value.default is value.empty and key not in options]
    if required:
        raise TaskError(f"task.{required[0]}: missing, task {name!r} needs it")
