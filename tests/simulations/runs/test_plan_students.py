"""From the students of a scenario to the steps that make them."""

from dataclasses import replace

import torch

from fedpress.compression.models.distillation.settings import RECIPES, Continuations
from fedpress.compression.models.students.initial_student import Start
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_students
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario


def test_students_are_made_as_the_scenario_says(tmp_path):
    tiers = "students.tiers=[{name: a, parameters: 0.5, student: mlp}, {name: b, parameters: 90, layers: 0.5}]"
    chosen = scenario.load("digits", [tiers, "students.data={data_free: {recipe: dafl, steps: 7, high: 2.0}}"])
    made = plan_students.publisher(Workload(chosen), RunFolder(tmp_path))
    assert made is not None and made.data.continuations is None
    assert [tier.steps[0].start for tier in made.tiers] == [Start("mlp"), Start(layers=0.5)]
    assert made.data.data_free == replace(RECIPES["dafl"], steps=7, high=2.0)
    chosen = scenario.load("text-books", ["students.data={continuations: {prompt: 8}}"])
    made = plan_students.publisher(Workload(chosen), RunFolder(tmp_path))
    assert made is not None and made.data.data_free is None
    assert made.data.continuations == Continuations(prompt=8) and made.tiers[0].steps[0].start == Start("gru")
    assert made.early is None
    ticket = "students.prune={granularity: weights, schedule: lottery, steps: 2}"
    workload = Workload(scenario.load("digits", [ticket, "students.tiers=[{name: a, removed_fraction: 0.8}]"]))
    made = plan_students.publisher(workload, RunFolder(tmp_path))
    assert made is not None and made.early is not None and made.tiers[0].steps[0].settings.schedule == "lottery"
    first = workload.fresh_model().state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in made.early.state_dict().items())
