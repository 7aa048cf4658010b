"""The work of a tier that trains: the scenario's, with a smaller model of the tier's own.

The model is the task's, cut to the shapes that pruning to the tier's budget gives, and its weights are drawn anew: it
is trained from the beginning. The server finds the shapes once and puts them into the run folder, where clients read
them; without a shared folder each side finds the same ones by itself.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property

import torch
from torch import nn

from fedpress.compression import seeds
from fedpress.compression.models import architecture
from fedpress.compression.models.students import initial_student
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Task
from fedpress.server.fusion import heterofl
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import Tier


class TierWorkload(Workload):
    """A tier's work, for its clients and for the server.

    Args:
        whole: the scenario's work, whose data and settings these are.
        tier: which tier.
    """

    def __init__(self, whole: Workload, tier: Tier) -> None:
        super().__init__(whole.scenario, whole.out, own_data=whole.own_data)
        self._whole = whole
        self._tier = tier
        self.federation = f"{whole.federation}/{tier.name}"

    @property
    def tier(self) -> str:
        """The tier's name."""
        return self._tier.name

    @cached_property
    def task(self) -> Task:
        """Model, loss and data of the whole scenario."""
        return self._whole.task

    @property
    def density(self) -> float:
        """Share of an update's entries that a client of the tier sends."""
        return self._tier.density or self.scenario.density

    @property
    def server_learning_rate(self) -> float:
        """Of the tier's optimizer."""
        return self._tier.server_learning_rate or self.scenario.server.learning_rate

    @property
    def budget(self) -> Budget:
        """What the tier's model may cost."""
        return self._tier

    @cached_property
    def shapes(self) -> dict[str, architecture.Shape]:
        """The shapes of the tier's model by name; from the run folder where the server has put them.

        Raises:
            BudgetError: the budget cannot be met.
            PruneError: the task's model cannot be pruned.
        """
        shared = RunFolder(self.out).architectures if self.out else None
        if shared and shared.exists():
            shapes = json.loads(shared.read_text(encoding="utf-8"))[self.tier]
            return {name: tuple(shape) for name, shape in shapes.items()}
        model = initial_student.start_of(
            self.task,
            self._whole.fresh_model(),
            self.task.data().proxy.inputs[:1],
            self.budget,
            start(self._tier),
            quantization=self.scenario.students.quantize,
            seed=self._seed,
        )
        return architecture.shapes(model)

    @property
    def _seed(self) -> int:
        return seeds.derive(self.federation, self.scenario.seed, "model")

    @cached_property
    def _initialized(self) -> nn.Module:
        name = start(self._tier).architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            model = self.task.model() if name is None else initial_student.fresh(self.task, name, seed=self._seed)
            architecture.shrink(model, self.shapes)
            for module in model.modules():
                if isinstance(module, architecture.RESIZABLE):
                    module.reset_parameters()  # type: ignore[operator]
        return model

    @cached_property
    def _model(self) -> nn.Module:
        """The initial model: drawn like the global one, or a slice of that where models are slices."""
        if self.scenario.teaching is None or self.scenario.teaching.method != "heterofl":
            return super()._model
        model, whole = copy.deepcopy(self._initialized), self._whole.fresh_model().state_dict()
        model.load_state_dict(
            {name: whole[name][heterofl.leading(tensor.shape)] for name, tensor in model.state_dict().items()}
        )
        return model


def start(tier: Tier) -> Start:
    """Return what the student of a scenario's tier is pruned from, where it is not searched for."""
    return Start(None if tier.student in ("pruned", "auto") else tier.student, tier.keep_every)
