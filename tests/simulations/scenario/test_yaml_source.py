"""YAML of scenarios: numbers, keys given twice, and changes of single values."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.simulations.scenario.problems import problems

from fedpress.simulations.scenario import yaml_source
from fedpress.simulations.scenario.scenario import load


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rounds: [1,\n", "not YAML: line 2"),
        ("- a\n- b\n", "expected `key: value` lines"),
        ("", "expected `key: value` lines, found nothing"),
        ("task: digits\nrounds: 1\nrounds: 2\n", "rounds: given twice, the second time in line 3"),
        ("task: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_scenario(tmp_path, text, expected):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert expected in problems(base=str(path))


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "broken.yaml" in problems(base=str(path))


def test_overrides_apply_in_order_and_reach_options_and_absent_sections():
    changed = load(
        "digits",
        ["rounds=3", "rounds=4", "task=fashion-mnist", "task.data_dir=/data", "network.up_mbit=2", "seed=1"],
    )
    assert changed.rounds == 4
    assert (changed.task.name, changed.task.options) == ("fashion-mnist", {"data_dir": "/data"})
    assert changed.network is not None and changed.network.up_mbit == 2.0
    assert load("digits", ["network.up_mbit=2", "network=null"]).network is None
    named = load("digits", ["encoder=qsgd", "encoder.bits=2"]).encoder  # a section that was written as a name
    assert (named.recipe, named.bits) == ("qsgd", 2)


def test_numbers_without_a_dot_are_numbers():
    assert load("digits", ["training.learning_rate=1e-2"]).training.learning_rate == 0.01


KEYS = st.text("abcdefgh_", min_size=1, max_size=6)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
TREES = st.recursive(
    PLAIN, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3), max_leaves=8
)


LOOKALIKES = st.sampled_from(
    "010 008 1:30 1:30.5 0x10 0o17 0b1 1_000 .inf -.INF .nan 1e3 1e999 .5 5. yes No ON off y n true ~ null Null << ="
    " 2026-01-01 2026-01-01T10:00:00Z 12e03 +1 -0 1,000 0.1.2 0x 1e".split()
)


@given(value=st.dictionaries(KEYS | LOOKALIKES, TREES | LOOKALIKES, max_size=4))
def test_what_is_written_is_read_as_it_was_here_and_by_readers_of_yaml_1_1(value: dict[str, Any]) -> None:
    assert yaml_source.read(yaml_source.write(value)) == value
    assert yaml.safe_load(yaml_source.write(value)) == value


@given(st.integers(), st.integers(0, 4))
def test_whole_numbers_are_decimal_whatever_stands_in_front(number: int, zeros: int) -> None:
    sign, digits = ("-", str(-number)) if number < 0 else ("", str(number))
    assert yaml_source.parse(f"{sign}{'0' * zeros}{digits}") == number
    assert yaml_source.parse(f"a: {sign}{'0' * zeros}{digits}") == {"a": number}
    assert [yaml_source.parse(f"{sign}{form}") for form in (hex(abs(number)), oct(abs(number)), bin(abs(number)))] == [
        number
    ] * 3


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_those_of_python(number: float) -> None:
    for text in (repr(number), f"{number:.17e}", f"{number:f}"):
        assert yaml_source.parse(text) == float(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1_000", 1000), ("-010", -10), ("010.5", 10.5), ("1_000.5", 1000.5), (".5", 0.5), ("5.", 5.0),
        ("-.inf", -np.inf), ("!!bool no", False),
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("2026-01-01", "2026-01-01"), ("12:00:00", "12:00:00"), ("0o8", "0o8"),
        ("1__0", "1__0"), ("=", "="), ("y", "y"), ("'no'", "no"), ('"010"', "010"), ("!!str 010", "010"),
        ("!!int 010", 10), ("!!str no", "no"), ("", None), ("~", None), ("none", "none"), ("False", False),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("{no: 1, 010: 2, 2026-01-01: 3, ~: 4}", {"no": 1, "010": 2, "2026-01-01": 3, "~": 4}),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(text: str, expected: Any) -> None:
    found = yaml_source.parse(text)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: 1\nb: no",
            'line 2: no is false to some readers of YAML and text to others; write false, or "no" in quotes',
        ),
        ("[On]", 'line 1: On is true to some .* "On" in quotes'),
        ("1e999", "line 1: 1e999 is beyond the range of a float; write .inf for infinity"),
        ("{010: 1, 010: 2}", "010: given twice"),
        ("{[a]: 1}", "line 1: a key is a list or a mapping, expected text"),
        ("!!int ten", "'ten' is no whole number"),
        ("!!float ten", "'ten' is no number"),
    ],
)
def test_what_readers_take_in_two_ways_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        yaml_source.parse(text)


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("clients=020", "clients", 20),
        ("rounds=010", "rounds", 10),
        ("seed=0123", "seed", 123),
        ("seed=0x10", "seed", 16),
    ],
)
def test_a_scenarios_number_is_decimal(override: str, key: str, expected: int) -> None:
    assert getattr(load("digits", [override]), key) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds=1:30", "rounds: got '1:30', expected a whole number"),
        ("rounds=2026-01-01", "rounds: got '2026-01-01', expected a whole number"),
        ("rounds=1e3", "rounds: got 1000.0, expected a whole number"),
        ("training.learning_rate=.nan", "training.learning_rate: got nan"),
        ("training.learning_rate=.inf", "training.learning_rate: got inf"),
        ("server.momentum=.nan", "server.momentum: got nan"),
        ("network.rate_sigma=.inf", "network.rate_sigma: got inf"),
        ("server.learning_rate=1e999", "beyond the range of a float"),
        ("downlink=", "there is no value; write null for none"),
        ("downlink=none", "downlink: got 'none'"),
    ],
)
def test_what_is_no_number_of_a_scenario_is_refused(override: str, expected: str) -> None:
    assert expected in problems(override)


@given(mantissa=st.integers(-99, 99), exponent=st.integers(-30, 30))
def test_an_exponent_makes_a_number_with_and_without_a_dot(mantissa: int, exponent: int) -> None:
    assert yaml_source.parse(f"{mantissa}e{exponent}") == float(f"{mantissa}e{exponent}")


@given(path=st.lists(KEYS, min_size=1, max_size=3), value=st.integers())
def test_an_override_changes_its_value_and_no_other(path: list[str], value: int) -> None:
    raw: dict[str, Any] = {"other": {"stays": 1}}
    yaml_source.override(raw, f"{'.'.join(path)}={value}")
    place: Any = raw
    for key in path:
        place = place[key]
    assert place == value and raw["other"] == {"stays": 1}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("rounds", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("a=[1", "not YAML"),
        ("a.b=1", "a is the value 5 and has no keys"),
        ("list.2=1", r"list is a list of 2; expected an index from 0, got '2'"),
        ("list.x=1", r"list is a list of 2; expected an index from 0, got 'x'"),
    ],
)
def test_an_override_that_leads_nowhere_is_named(assignment: str, expected: str) -> None:
    raw = {"a": 5, "list": [1, 2]}
    with pytest.raises(ValueError, match=expected):
        yaml_source.override(raw, assignment)
    assert raw == {"a": 5, "list": [1, 2]}


def test_a_key_given_twice_below_another_is_named_with_its_line() -> None:
    with pytest.raises(ValueError, match="b: given twice, the second time in line 3"):
        yaml_source.parse("a:\n  b: 1\n  b: 2\n")


def bomb(levels: int) -> str:
    """A text of a few lines that stands for 9^levels values."""
    names = [f"a{number}" for number in range(levels + 1)]
    lines = [f"{names[0]}: &{names[0]} [{', '.join('123456789')}]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(30), "more than 20,000 values"),
        ("a: &a [*a]", "the alias in line 1 stands within its own value"),
        ("&a {b: {c: *a}}", "the alias in line 1 stands within its own value"),
        ("[" * 100_000, "more than 50 lists or mappings within each other"),
        ("\n".join(f"{' ' * depth}a:" for depth in range(400)), "more than 50 lists or mappings within each other"),
        ("a: " + "x" * yaml_source.MOST_LETTERS, "131,075 letters, and at most 131,072"),
        ("a: !!int ''", "line 1: '' is no whole number"),
        ("a: !!bool x", "a value does not fit its tag"),
        ("a: !!timestamp x", "a value does not fit its tag"),
    ],
    ids=lambda value: value[:20],
)
def test_a_text_that_stands_for_more_than_a_scenario_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        yaml_source.parse(text)


def test_aliases_are_allowed() -> None:
    assert yaml_source.parse("a: &a [1, 2]\nb: *a\nc: [*a, *a]") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}
    assert len(yaml_source.parse(bomb(3))) == 4


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        yaml_source.parse(text)
