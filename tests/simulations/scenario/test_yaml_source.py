"""YAML of scenarios: numbers, keys given twice, and changes of single values."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

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


@given(value=st.dictionaries(KEYS, TREES, max_size=4))
def test_what_pyyaml_writes_is_read_as_it_was(value: dict[str, Any]) -> None:
    assert yaml_source.read(yaml.safe_dump(value) if value else "{}") == value


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
        ("a: !!int ''", "a value does not fit its tag"),
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
