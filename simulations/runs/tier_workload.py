"""Work of a tier that trains: that of the scenario, on a smaller model.

The model is the task's, cut to the shapes that pruning to the tier's budget gives, with fresh weights: it is trained
from the beginning. The server computes the shapes once and writes them into the run folder, where clients read them;
without a shared folder each side computes the same shapes.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property

import torch
from torch import nn

from fedpress.compression import files, seeds
from fedpress.compression.models import architecture
from fedpress.compression.models.pruning import importance
from fedpress.compression.models.students import initial_student
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Task
from fedpress.server.fusion import heterofl
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import Tier


class TierWorkload(Workload):
    """Work of a tier, for its clients and for the server.

    Args:
        whole: Work on the global model, whose data and settings these are.
        tier: The tier.
    """

    def __init__(self, whole: Workload, tier: Tier) -> None:
        super().__init__(whole.scenario, whole.out, own_data=whole.own_data)
        self._whole = whole
        self._tier = tier
        self.federation = f"{whole.federation}/{tier.name}"

    @property
    def tier(self) -> str:
        """Name of the tier."""
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
        """Learning rate of the tier's server optimizer."""
        return self._tier.server_learning_rate or self.scenario.server.learning_rate

    @property
    def budget(self) -> Budget:
        """Budget of the tier's model."""
        return self._tier

    @cached_property
    def shapes(self) -> dict[str, architecture.Shape]:
        """Shapes of the tier's model by the names of its tensors; from the run folder if they are there.

        Raises:
            BudgetError: The task's model cannot be within the budget.
            PruneError: The task's model cannot be pruned.
        """
        shared = RunFolder(self.out).architectures if self.out else None
        if shared and shared.exists():
            shapes = json.loads(files.read_text(shared))[self.tier]
            return {name: tuple(shape) for name, shape in shapes.items()}
        model = initial_student.start_of(
            self.task,
            self._whole.fresh_model(),
            self.task.data().proxy.inputs[:1],
            self.budget,
            start(self._tier),
            lambda _: importance.named(self.scenario.students.prune),
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
        """Initial model: drawn like the global one, or its leading slice with method heterofl."""
        if self.scenario.teaching is None or self.scenario.teaching.method != "heterofl":
            return super()._model
        model, whole = copy.deepcopy(self._initialized), self._whole.fresh_model().state_dict()
        model.load_state_dict(
            {name: whole[name][heterofl.leading(tensor.shape)] for name, tensor in model.state_dict().items()}
        )
        return model


def start(tier: Tier) -> Start:
    """Return the model that a tier's student is pruned from, unless it is searched for."""
    return Start(None if tier.student in ("pruned", "auto") else tier.student, tier.keep_every)
