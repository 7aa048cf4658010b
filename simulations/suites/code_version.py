"""Version of the code behind a run's figures: a hash of every module that a run can reach, and of the libraries.

The standard library's `modulefinder` would follow the libraries, too, does not support packages without `__init__.py`,
and misses modules named in a text (`"module:object"`); grimp, which checks our layers, is no dependency of a run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOTS = (
    "fedpress.simulations.runs.runner",
    "fedpress.client.app",
    "fedpress.server.app",
)
"""Entry points of `fedpress simulate`; the other modules follow from their imports."""
LIBRARIES = ("flwr", "numpy", "torch")


def imported(module: str, text: str) -> set[str]:
    """Return the modules of fedpress that a module imports, or names as `module:object`.

    Args:
        module: Name of the module, for errors.
        text: Its source.

    >>> sorted(imported("m", "import numpy\\ndef f():\\n    from fedpress.client.state import stores"))
    ['fedpress.client.state', 'fedpress.client.state.stores']
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(text, module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(re.findall(r"^(fedpress(?:\.\w+)+):\w+$", node.value))  # a reference, loaded by name
    return {name for name in found if name.startswith("fedpress.")}


def sources() -> dict[str, Path]:
    """Return the files of the modules that a run can reach, by module name."""
    found: dict[str, Path] = {}
    waiting = [*ROOTS]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            spec = find_spec(name)
        except (ModuleNotFoundError, AttributeError):  # a function or class of the module before it
            continue
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        found[name] = Path(spec.origin)
        waiting += imported(name, found[name].read_text(encoding="utf-8"))
    return found


@functools.cache
def code_version() -> str:
    """Return the hash, 10 hexadecimal digits; it covers tasks and comments, too."""
    digest = hashlib.sha256()
    for name, path in sorted(sources().items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for library in LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()[:10]
