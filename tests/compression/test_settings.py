"""Settings: what is wrong is named in one text, by whoever constructs them; a file's problems stay pydantic's."""

import copy
import dataclasses
import pickle

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.settings import (
    STRICT,
    Field,
    Fraction,
    Settings,
    dataclass,
    fields,
    is_section,
    sections,
)


@dataclass(frozen=True, config=STRICT)
class Warmth(Settings):
    """A section of its own."""

    degrees: float = Field(default=1.0, gt=0, description="How warm.")


@dataclass(frozen=True, config=STRICT)
class Oven(Settings):
    """Settings with a section, a list of sections, and a rule over two keys."""

    shelves: int = Field(ge=1, description="How many.")
    rate: Fraction = Field(default=0.5, description="How fast.")
    warmth: Warmth | None = Field(default=None, description="The section.")
    steps: tuple[Warmth, ...] = Field(default=(), description="More of them.")
    size: int | float = Field(default=1, description="Either.")

    def __post_init__(self) -> None:
        if self.rate == 0.25 and self.shelves > 3:
            raise ValueError("shelves: at most 3 at a rate of 0.25")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "Oven: shelves: missing"),
        ({"shelves": 0}, "Oven: shelves: got 0, expected greater than or equal to 1"),
        ({"shelves": "3"}, "Oven: shelves: got '3', expected a valid integer"),
        ({"shelves": 1, "rate": float("nan")}, "Oven: rate: got nan, expected a finite number"),
        ({"shelves": 1, "warmth": 7}, "Oven: warmth: got 7, expected a dictionary or an instance of Warmth"),
        ({"shelves": 1, "warmth": {"degrees": -1.0}}, "Oven: warmth.degrees: got -1.0, expected greater than 0"),
        ({"shelves": 1, "steps": ({"degrees": 0.0},)}, "Oven: steps.degrees: got 0.0, expected greater than 0"),
        (
            {"shelves": 1, "shelfs": 2},
            "Oven: 'shelfs' is unknown; the keys are shelves, rate, warmth, steps, size; did you mean 'shelves'?",
        ),
        (
            {"shelves": 1, "warmth": {"degree": 2.0}},
            "Oven: warmth: 'degree' is unknown; the keys are degrees; did you mean 'degrees'?",
        ),
        ({"shelves": 4, "rate": 0.25}, "Oven: shelves: at most 3 at a rate of 0.25"),
        (
            {"shelves": 0, "rate": 2.0},
            "Oven: shelves: got 0, expected greater than or equal to 1; "
            "rate: got 2.0, expected less than or equal to 1",
        ),
        (
            {"shelves": 1, "size": "x"},
            "Oven: size: got 'x', expected a valid integer; size: got 'x', expected a valid number",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_key(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        Oven(**wrong)
    assert str(raised.value) == words


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError, match=r"^Oven: shelves: got 'x{76}\.\.\., expected a valid integer$"):
        Oven(shelves="x" * 1000)  # type: ignore[arg-type]


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(ValueError, match="^Oven: rate: got 3, expected"):
        dataclasses.replace(Oven(2), rate=3)


def test_a_section_of_a_file_keeps_the_place_of_its_problem() -> None:
    class File(pydantic.BaseModel):
        oven: Oven

    with pytest.raises(pydantic.ValidationError) as raised:
        File.model_validate({"oven": {"shelves": 1, "warmth": {"degrees": 0.0}}})
    assert raised.value.errors()[0]["loc"] == ("oven", "warmth", "degrees")


@given(shelves=st.integers(1), rate=st.floats(0, 1, exclude_min=True), degrees=st.none() | st.floats(1, 1e300))
def test_what_is_valid_is_taken_as_it_is(shelves: int, rate: float, degrees: float | None) -> None:
    if rate == 0.25:
        shelves = min(shelves, 3)
    oven = Oven(shelves, rate, None if degrees is None else Warmth(degrees))
    assert (oven.shelves, oven.rate) == (shelves, rate)
    assert pickle.loads(pickle.dumps(oven)) == copy.deepcopy(oven) == oven
    assert oven.changed("rate") == (rate != 0.5) and oven.changed("warmth") == (degrees is not None)


def test_fields_and_sections_of_a_class() -> None:
    assert list(fields(Oven)) == ["shelves", "rate", "warmth", "steps", "size"]
    assert is_section(Oven) and not is_section(int) and not is_section(Oven | None)
    assert list(sections(Warmth | None)) == list(sections(tuple[Warmth, ...])) == [Warmth]
    assert not list(sections(int | str))
