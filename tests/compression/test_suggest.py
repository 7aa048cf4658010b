"""Suggestions: all that is allowed, and the nearest to what was given."""

from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import suggest

NAMES = ["top_k", "random_k", "signsgd", "Xyz"]


@given(st.sampled_from(NAMES), st.integers(0, 9))
def test_a_slip_finds_its_name(name: str, place: int) -> None:
    slipped = name[: place % len(name)] + name[place % len(name) + 1 :]
    assert suggest.choices(NAMES, slipped) == f"top_k, random_k, signsgd, Xyz; did you mean {name!r}?"


@given(st.one_of(st.none(), st.integers(), st.just("quite another thing")))
def test_what_is_near_nothing_gets_the_list_alone(given_: object) -> None:
    assert suggest.choices(iter(NAMES), given_) == "top_k, random_k, signsgd, Xyz"


def test_dashes_and_capitals_do_not_matter() -> None:
    assert suggest.choices(NAMES, "RANDOM-K").endswith("did you mean 'random_k'?")
