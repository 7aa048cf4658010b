"""Large libraries that are loaded when a test runs, and not wherever tests are collected: seconds in each process."""

import importlib
import importlib.util
from typing import Any

import pytest

NEEDS_TEXT_MODELS = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "peft")),
    reason="needs the extra text-models",
)


class _Loaded:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


def loaded(name: str) -> Any:
    """Return what behaves like a module, and is imported when something of it is asked for.

    Args:
        name: Name of the module.
    """
    return _Loaded(name)
