"""A worker reads its clients' parts where the server has put them, one at a time."""

from __future__ import annotations

import numpy as np

from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios


def test_a_saved_part_is_the_drawn_one_and_nothing_is_drawn_again(tmp_path):
    scenario = scenarios.load("digits", ["clients=12"])
    server = Workload(scenario, tmp_path)
    server.save_parts(RunFolder(tmp_path))
    worker = Workload(scenario, tmp_path)
    assert all(np.array_equal(worker.part(client), server.parts[client]) for client in range(12))
    assert len(worker.examples(3).targets) == len(server.parts[3])
    assert "parts" not in vars(worker)


def test_without_a_run_folder_the_parts_are_drawn(tmp_path):
    scenario = scenarios.load("digits", ["clients=12"])
    assert np.array_equal(Workload(scenario).part(5), Workload(scenario, tmp_path).parts[5])
