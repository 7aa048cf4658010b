"""The schedule of a scenario's masks: the first mask is found once, and stays in the run folder."""

from pathlib import Path

import numpy as np
import pytest

from fedpress.compression.tensors.mask import Mask
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_masks
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario


def positions(mask: Mask | None) -> list[int]:
    assert mask is not None
    return np.asarray(mask.positions).tolist()


def test_without_sparsity_there_is_no_schedule_and_no_mask(tmp_path: Path) -> None:
    workload, folder = Workload(scenario.load("digits")), RunFolder.create(tmp_path / "run")
    assert plan_masks.schedule(workload, folder) is None
    assert plan_masks.first_mask(workload, folder) is None and not folder.mask.exists()


@pytest.mark.parametrize("method", ["erk", "snip", "rigl"])
def test_a_first_mask_has_the_density_asked_for_and_is_read_back(tmp_path: Path, method: str) -> None:
    chosen = scenario.load("digits", [f"sparsity={{method: {method}, density: 0.1}}"])
    workload, folder = Workload(chosen), RunFolder.create(tmp_path / "run")
    schedule = plan_masks.schedule(workload, folder)
    assert schedule is not None
    found = positions(plan_masks.first_mask(workload, folder))
    assert len(set(found)) == len(found) and max(found) < workload.layout.size
    written = folder.mask.stat().st_mtime_ns
    again = plan_masks.schedule(Workload(chosen), folder)
    assert folder.mask.stat().st_mtime_ns == written and type(again) is type(schedule)
    other = RunFolder.create(tmp_path / "other")
    plan_masks.schedule(Workload(chosen), other)
    assert positions(plan_masks.first_mask(workload, other)) == found  # drawn from the seed


def test_gradual_pruning_begins_with_all_weights(tmp_path: Path) -> None:
    workload = Workload(scenario.load("digits", ["sparsity={method: gradual, density: 0.1, end: 9}"]))
    folder = RunFolder.create(tmp_path / "run")
    assert plan_masks.schedule(workload, folder) is not None
    assert not folder.mask.exists()
