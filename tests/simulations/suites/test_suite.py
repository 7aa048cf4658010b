"""Suites are crossed as they say, refused with all that is wrong, and a cell is known by what its result depends on."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.scenario import encoder, scenario
from fedpress.simulations.suites import suite
from fedpress.simulations.suites.suite import SuiteError


def write(folder: Path, text: str) -> suite.Suite:
    path = folder / "mine.yaml"
    path.write_text(text)
    return suite.load(path)


def test_every_suite_that_comes_with_fedpress_has_cells() -> None:
    for name in suite.names():
        chosen = suite.load(name)
        cells = chosen.cells()
        assert len({cell.name for cell in cells}) == len(cells)
        assert all(not cell.scenario.students.tiers for cell in cells)
        assert {cell.method for cell in cells} <= {*suite.published(), *chosen.methods}


def test_every_recipe_is_a_method() -> None:
    by_method = {cell.method: cell.scenario.encoder for cell in suite.load("digits").cells(seeds=[1])}
    assert {chosen.recipe for chosen in by_method.values()} - {None} == set(encoder.RECIPES)
    own = {"fedpress"}  # the method is the scenario's own encoder
    of_parts = [
        encoder.EncoderSettings.model_validate({"recipe": name}) for name in encoder.NAMES_OF_PARTS.keys() - own
    ]
    assert all(chosen in by_method.values() for chosen in of_parts)
    assert list(by_method) == list(suite.published())


def test_what_is_tuned_counts_in_its_scenario_and_the_command_line_has_the_last_word() -> None:
    cells = suite.load("fashion-mnist").cells(only=["fedavg"], overrides=["rounds=7"])
    assert {(cell.scenario.server.learning_rate, cell.scenario.rounds) for cell in cells} == {(2.0, 7)}
    assert [cell.scenario.server.learning_rate for cell in suite.load("digits").cells(only=["fedavg"], seeds=[4])] == [
        1.5
    ]


def test_grids_are_crossed_and_no_cell_is_twice(tmp_path: Path) -> None:
    chosen = write(
        tmp_path,
        """
grids:
  - {scenario: digits, partitions: [iid, dirichlet-0.1], methods: [fedavg, half], seeds: 1-2}
  - {scenario: digits, partitions: [iid], methods: [half], seeds: [2, 5]}
methods:
  half: {title: Half, set: [encoder=fp16, downlink=null]}
""",
    )
    names = [(cell.partition, cell.method, cell.seed) for cell in chosen.cells()]
    assert names == [
        *itertools.product(("iid", "dirichlet-0.1"), ("fedavg", "half"), (1, 2)), ("iid", "half", 5),
    ]  # fmt: skip
    assert {cell.scenario.partition.kind for cell in chosen.cells() if cell.partition == "iid"} == {"iid"}
    assert chosen.name == "mine"


def test_a_scenario_beside_the_suite_is_found(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(scenario.load("digits", ["rounds=2"]).to_yaml())
    chosen = write(tmp_path, "grids: [{scenario: own.yaml, methods: [stc], seeds: 3}]")
    (cell,) = chosen.cells(folder=tmp_path)
    assert (cell.task, cell.partition, cell.seed, cell.scenario.rounds) == ("digits", "dirichlet-0.5", 3, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grids: [{scenario: digits, method: [stc]}]", "unknown key (value given: ['stc']); did you mean 'methods'?"),
        ("grids: [{scenario: digits, seeds: []}]", "grids.0.seeds: expected at least one (value given: [])"),
        ("grids: [{scenario: digits, seeds: 1-x}]", "got '1-x', expected a range such as 1-10"),
        ("grids: [{scenario: digits, seeds: '3,3'}]", "expected at least one seed, and each once"),
        ("grids: [{scenario: digits, targets: [95]}]", "got 95"),
        ("grids: []", "grids: expected at least one"),
        ("grids", "expected `key: value` lines"),
        ("a: 1\na: 2", "a: given twice"),
    ],
)  # fmt: skip
def test_a_suite_that_cannot_be_read_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SuiteError) as raised:
        write(tmp_path, text)
    assert said in str(raised.value) and "mine.yaml" in str(raised.value)
    assert "2 problem" not in str(raised.value)


def test_a_suite_that_cannot_be_run_says_all_that_is_wrong(tmp_path: Path) -> None:
    chosen = write(
        tmp_path,
        """
grids:
  - {scenario: digits, partitions: [dirichlet], methods: [stc]}
  - {scenario: digit, methods: [stc], seeds: 1}
  - {scenario: digits, methods: [fedavgg, bad], seeds: 1}
methods: {bad: {set: [server.rate=1]}}
""",
    )
    with pytest.raises(SuiteError) as raised:
        chosen.cells(only=["stc", "bad", "qsg"])
    for said in (
        "method 'qsg': expected", "did you mean 'qsgd'?", "dirichlet-ALPHA such as dirichlet-0.3",
        "did you mean 'digits'?", "'fedavgg': expected", "server.rate: unknown key",
    ):  # fmt: skip
        assert said in str(raised.value)
    with pytest.raises(
        SuiteError, match="there is no such file; expected a YAML file, or one of .*did you mean 'digits'?"
    ):
        suite.load("digts")


@given(st.floats(0.001, 1000, allow_nan=False))
def test_the_name_of_a_partition_is_read_back(alpha: float) -> None:
    rounded = float(f"{alpha:.4f}")
    changed = scenario.load("digits", suite.partition_changes(f"dirichlet-{rounded:.4f}"))
    assert changed.partition.alpha == rounded
    again = scenario.load("digits", suite.partition_changes("labels-3"))
    assert suite.partition_name(again) == "labels-3"


def test_a_cell_is_known_by_what_its_result_depends_on() -> None:
    (cell,) = suite.load("digits").cells(only=["stc"], seeds=[1])
    same = cell._replace(scenario=cell.scenario.model_copy(update={"workers": 5}))
    other = cell._replace(scenario=cell.scenario.model_copy(update={"rounds": 5}))
    assert same.configuration == cell.configuration != other.configuration
