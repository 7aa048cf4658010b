"""Entry points: objects that a configuration names as "module:attribute"."""

from importlib import import_module
from typing import Any


def load(reference: str) -> Any:
    """Import a module and return its attribute.

    >>> load("math:pi")
    3.141592653589793

    Raises:
        ValueError: The reference has another form, or the module has no such attribute.
        ImportError: The module does not exist or fails to import.
    """
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        raise ValueError(f"expected 'module:attribute', for example 'fedpress.client.app:app', and got {reference!r}")
    imported = import_module(module)
    if not hasattr(imported, attribute):
        place = getattr(imported, "__file__", None) or "built in"
        raise ValueError(f"module {module!r} ({place}) has no attribute {attribute!r}")
    return getattr(imported, attribute)
