"""Objects named as "module:attribute": found, or the likely mistake is named."""

import math

import pytest

from fedpress.compression import entry_points


def test_the_attribute_itself_is_returned() -> None:
    assert entry_points.load("math:floor") is math.floor
    assert entry_points.load("fedpress.compression.entry_points:load") is entry_points.load


@pytest.mark.parametrize("reference", ["math", "math:", ":pi", ""])
def test_another_form_is_refused_with_an_example(reference: str) -> None:
    with pytest.raises(ValueError, match=f"expected 'module:attribute', for example .*, and got {reference!r}"):
        entry_points.load(reference)


def test_an_attribute_that_is_not_there_is_named_with_its_module() -> None:
    with pytest.raises(
        ValueError, match=r"module 'fedpress.compression.errors' \(.*errors.py\) has no attribute 'Nope'"
    ):
        entry_points.load("fedpress.compression.errors:Nope")
    with pytest.raises(ValueError, match="module 'math' .* has no attribute 'nope'"):
        entry_points.load("math:nope")
    with pytest.raises(ValueError, match="module 'sys' .* has no attribute 'nope'"):  # built in: of no file
        entry_points.load("sys:nope")


def test_a_module_that_is_not_there_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        entry_points.load("no_such_module:app")
