"""Checks of a scenario before its first round: data, model, training, students, rounds.

`check` makes them in this order, in seconds, and raises an error that names the part; what is unusual but can be
trained is a note. Everything is tried on the real thing: the task's examples, a step of training with the scenario's
settings, an evaluation, the server's plan in a temporary folder. Nothing is forbidden that a task can do: labels
outside the outputs, NaN among the inputs or targets of -100 are errors only where its own loss cannot take them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from fedpress.compression.models.task import Splits, evaluate, usable
from fedpress.server import app as server
from fedpress.simulations.conditions import faults
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import check_data, check_training, plan_students
from fedpress.simulations.runs import check_texts as texts
from fedpress.simulations.runs.check_data import TRIED
from fedpress.simulations.runs.check_texts import CheckError as CheckError
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario


class Checked(NamedTuple):
    """Result of the checks.

    Attributes:
        plan: The server's plan, made in a temporary folder that is gone.
        notes: What is unusual, though the run can go on with it.
    """

    plan: server.Plan
    notes: list[str]


MakePlan: TypeAlias = Callable[[Job, RunFolder], server.Plan]


def check(job: Job, make_plan: MakePlan) -> Checked:
    """Check a scenario before its first round.

    Args:
        job: Work of the scenario; what it loads stays loaded.
        make_plan: Makes the server's plan (`plan.plan`).

    Raises:
        FedpressError: The run would fail, or all of its rounds would be empty.
    """
    with texts.drawing(0):  # whatever the task draws, this process's generators stay as they are
        return _check(job, make_plan)


def _check(job: Job, make_plan: MakePlan) -> Checked:
    workload = job.whole
    scenario = workload.scenario
    usable(scenario.training.device)
    plan_students.signing_key(scenario.students)
    splits = check_data.load(workload)
    notes = [*check_data.check_partition(workload, splits), *_rounds(workload)]
    model = check_training.initial_model(workload)
    notes += check_training.trained(workload, model)
    for name, judged in check_data.used_parts(scenario).items():
        notes += check_data.check_part(workload.task, model, name, getattr(splits, name), judged)
    notes += check_training.clients(workload, model)
    notes += check_training.step(workload, model)
    part = getattr(splits, scenario.evaluation.split)
    with texts.by_task(workload.task, f"evaluating the model on part {scenario.evaluation.split!r}"):
        evaluate(workload.fresh_model(), workload.task, part.take(np.arange(min(len(part.targets), TRIED + 1))))
    return Checked(_plan(job, make_plan, splits, model), notes)


def _from_the_model(scenario: Scenario) -> bool:
    """Return whether a student is the model itself, made smaller, and not an architecture of its own."""
    return any(tier.student in ("pruned", "auto") for tier in scenario.students.tiers)


def _plan(job: Job, make_plan: MakePlan, splits: Splits, model: nn.Module) -> server.Plan:
    """Return the server's plan after its publisher has been asked whether all students can be made."""
    scenario = job.whole.scenario
    students, proxy = scenario.students, splits.proxy
    if _from_the_model(scenario):
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
                raise CheckError(
                    f"the model comes with infinity in buffer {name!r}, which no student's bundle can hold; register it"
                    " with persistent=False, as a constant that every instance makes for itself"
                )
    if students.tiers:
        labeled = students.distill.labeled
        if students.data.labels and labeled is not None and labeled > len(proxy.targets):
            raise CheckError(
                f"students.distill.labeled: got {labeled}, but part 'proxy' has {len(proxy.targets)} examples"
            )
    with tempfile.TemporaryDirectory(prefix="fedpress-check-") as folder, texts.by_task(job.whole.task, "the plan"):
        planned = make_plan(job, RunFolder(Path(folder)))
        if planned.publisher:
            planned.publisher.check(planned.model)
    return planned


def _rounds(workload: Workload) -> Iterator[str]:
    """Yield notes on deadlines and faults; raise where no reply of a round could ever count."""
    scenario, network = workload.scenario, workload.network
    deadline = scenario.sampling.deadline
    if scenario.faults is not None:
        for kind in (faults.CRASHES, faults.DIVERGES, faults.LOST, faults.DAMAGED):
            if getattr(scenario.faults, kind) == 1:
                raise CheckError(f"faults.{kind}: with a chance of 1 no reply of any round can be used")
        if scenario.faults.late == 1 and deadline is not None and scenario.faults.late_seconds > deadline:
            raise CheckError(
                f"faults.late: with a chance of 1 and late_seconds {scenario.faults.late_seconds:g} every reply comes"
                f" after sampling.deadline, {deadline:g}"
            )
    if network is None or deadline is None:
        return
    least = [  # without any byte, and if it answers at all
        min(
            network.seconds(client=client, round=number, down_bytes=0, examples=examples, up_bytes=0)
            for number in range(1, min(scenario.rounds, 10) + 1)
        )
        for client, examples in ((c, workload.examples_a_round(c)) for c in range(scenario.clients))
    ]
    slow = [client for client, seconds in enumerate(least) if deadline < seconds < float("inf")]
    if slow and min(least) > deadline:
        raise CheckError(
            f"sampling.deadline: got {deadline:g} s, but no client can be in time: with messages of no bytes the"
            f" fastest takes {min(least):.3g} s"
        )
    if slow:
        which = texts.some(slow, "client")
        yield f"{which} too slow for sampling.deadline, {deadline:g} s, whatever the messages weigh"
