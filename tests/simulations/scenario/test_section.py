"""Sections: strict, read-only, and short where they have a name."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from fedpress.simulations.scenario.section import Section, of_name


class Sample(Section):
    """Two numbers."""

    count: int = Field(default=1)
    rate: float = Field(default=0.5)


@pytest.mark.parametrize("wrong", [{"count": "1"}, {"count": 1.0}, {"rate": float("inf")}, {"other": 1}])
def test_nothing_is_converted_and_no_key_is_unknown(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sample.model_validate(wrong)


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().count = 2  # type: ignore[misc]


def test_changed_compares_with_the_defaults() -> None:
    assert not Sample(count=1).changed("count", "rate")
    assert Sample(count=2).changed("count") and not Sample(count=2).changed("rate")


def test_a_bare_name_is_a_section_with_that_name_alone() -> None:
    named = of_name("recipe")
    assert named("stc") == {"recipe": "stc"}
    for other in ({"recipe": "stc", "bits": 3}, None, 5):
        assert named(other) == other
