"""Work of each client: on the global model, or on the model of its tier.

The ClientApp calls `load` by its name in the run's configuration (`workload`, `scenario`, `out`), so that `client/`
imports nothing from here. The server's half is `fedpress.simulations.runs.plan:load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpress.client import workloads
from fedpress.client.state.bases import Bases
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.rounds import TaskChoice
from fedpress.simulations.scenario.scenario import Scenario

if TYPE_CHECKING:
    from fedpress.simulations.runs.tier_workload import TierWorkload

REFERENCE = "fedpress.simulations.runs.job:load"
"""Value of `workload` in the configuration of a run."""


class Job:
    """All work of a scenario (`fedpress.client.app.Job`).

    Args:
        scenario: The scenario.
        out: Path of the run folder; None: no folder.
        own_data: Whether the task's data are those of this one client, and not partitioned.
        bases: Pretrained bases that this device was sent; None: those of this user.

    Attributes:
        whole: Work on the global model.
    """

    def __init__(
        self, scenario: Scenario, out: Path | None = None, *, own_data: bool = False, bases: Bases | None = None
    ) -> None:
        self.whole = Workload(scenario, out, own_data=own_data, bases=bases)

    @cached_property
    def tiers(self) -> dict[str, TierWorkload]:
        """Work of each tier that trains, by the tier's name."""
        groups = [group for group in self.whole.scenario.groups if group]
        if not groups:
            return {}
        from fedpress.simulations.runs.tier_workload import TierWorkload  # prunes, as few clients do

        return {group.name: TierWorkload(self.whole, group) for group in groups}

    def at(self, out: Path) -> Job:
        """Give the job its run folder, once there is one, and return it."""
        for work in self.models.values():
            work.out = out
        return self

    @property
    def models(self) -> dict[str, Workload]:
        """Work on every model by the name of its tier; empty for the global model."""
        return {"": self.whole, **self.tiers}

    def of_client(self, client: int, tier: str | None = None) -> Workload:
        """Return the work of one client.

        Args:
            client: Index of the client, from 0; clients belong to the models in turn.
            tier: The client's own tier, which takes precedence; a tier that does not train is of the global model.
        """
        groups = self.whole.scenario.groups
        group = groups[client % len(groups)]
        name = tier if tier is not None else group.name if group else ""
        return self.tiers.get(name, self.whole)


def load(run_config: Mapping[str, Any]) -> Job:
    """Return the job that a run's configuration names.

    Args:
        run_config: `scenario` is a whole scenario as JSON, the name of one, or the path of a YAML file; `out` the run
            folder (absent or empty: a new one under `runs/`); `data-folder` one node's own data, in place of the task's
            `data_dir`, and not partitioned; `initial-weights` the node's own copy of the file of `init`, `base-weights`
            of those of `base`, `base-folder` its folder of bases that it was sent; `workloads` the list of a node that
            restricts what a server may name, and which then reads no other file of `init` or `base`.

    Raises:
        ScenarioError: The scenario is not valid.
        WorkloadRefused: It names a class or a folder that the node does not allow.
    """
    text = str(run_config.get("scenario", "digits"))
    scenario = Scenario.from_json(text) if text.lstrip().startswith("{") else scenarios.load(text)
    out, data_folder = run_config.get("out"), run_config.get("data-folder")
    if (allowed := workloads.listed(run_config)) is not None:
        scenario = _within(allowed, scenario, own_data=bool(data_folder))
    if data_folder:
        task = TaskChoice(**{**scenario.task.model_dump(), "data_dir": str(data_folder)})
        scenario = scenario.model_copy(update={"task": task})
    if initial := run_config.get("initial-weights"):
        scenario = scenario.model_copy(update={"init": str(initial)})
    if (base := run_config.get("base-weights")) and scenario.base is not None:
        scenario = scenario.model_copy(update={"base": scenario.base.model_copy(update={"path": str(base)})})
    out_folder = Path(str(out)) if out else None
    return Job(scenario, out_folder, own_data=bool(data_folder), bases=Bases.of(run_config))


def _within(allowed: tuple[str, ...], scenario: Scenario, *, own_data: bool) -> Scenario:
    """Return the scenario as a node with a list takes it: without folders that the server would choose on it."""
    task = scenario.task
    if ":" in task.name:
        workloads.check(task.name, allowed, "task")
    elif "data_dir" in task.options and not own_data:
        raise workloads.WorkloadRefused(
            f"the server's scenario wants the files in {str(task.options['data_dir'])[:200]!r} of this device; name the"
            " folder by `data` in the settings of `fedpress client`, if they are to be trained on"
        )
    base = scenario.base and scenario.base.model_copy(update={"path": None})
    return scenario.model_copy(update={"task": task.model_copy(update={"folder": None}), "init": None, "base": base})
