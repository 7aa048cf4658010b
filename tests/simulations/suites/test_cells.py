"""The store of a suite's runs, and a cell that fails; cli/test_suites.py runs a whole suite."""

import os
from pathlib import Path

import pytest

from fedpress.simulations.results.records import ModelInfo, Results, Totals
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.suites import cells, suite
from fedpress.simulations.suites.cells import CellStore, Event
from fedpress.simulations.suites.code_version import code_version


@pytest.fixture
def cell() -> suite.Cell:
    (cell,) = suite.load("digits").cells(only=["stc"], seeds=[1])
    return cell


def finished(path: Path, accuracy: float, status: str = "finished") -> None:
    nothing = Totals(up_bytes=0, down_bytes=0, dense_up_bytes=0, dense_down_bytes=0)
    RunFolder.create(path).save_results(
        Results(
            scenario={}, seed=1, status=status, rounds=[], totals=nothing, accuracy=accuracy, seconds=1.0,
            model=ModelInfo(parameters=1, sha256=""),
        )
    )  # fmt: skip


def test_a_run_of_other_code_counts_only_if_asked_for_and_the_newest_first(tmp_path: Path, cell: suite.Cell) -> None:
    strict, lenient = CellStore(tmp_path), CellStore(tmp_path, any_code=True)
    assert lenient.results(cell) is None and lenient.code(cell) == code_version()
    for age, (code, accuracy, status) in enumerate(
        [("bbbb", 0.2, "interrupted"), ("cccc", 0.4, "finished"), ("dddd", 0.3, "finished")]
    ):
        finished(tmp_path / "cells" / f"{cell.name}-{code}", accuracy, status)
        os.utime(tmp_path / "cells" / f"{cell.name}-{code}" / "results.json", (1e9 - age, 1e9 - age))
    assert strict.results(cell) is None
    found = lenient.results(cell)
    assert found is not None and found.accuracy == 0.4 and lenient.code(cell) == "cccc"
    finished(tmp_path / "cells" / f"{cell.name}-{code_version()}", 0.1)
    for store in (strict, lenient):
        found = store.results(cell)
        assert found is not None and found.accuracy == 0.1


@pytest.mark.long
@pytest.mark.slow
def test_what_is_finished_is_not_run_and_a_cell_that_fails_stops_no_other(tmp_path: Path, cell: suite.Cell) -> None:
    store = CellStore(tmp_path)
    finished(store.folder(cell).path, 0.1)
    task = cell.scenario.task.model_copy(update={"name": "nowhere:Task"})
    broken = cell._replace(task="broken", scenario=cell.scenario.model_copy(update={"task": task}))
    events: list[Event] = []
    (failure,) = cells.run([cell, broken], store, 2, events.append)
    assert failure.cell == broken and "nowhere" in failure.text
    assert [event.finished for event in events if event.finished] == [broken] and events[-1].done == 1
