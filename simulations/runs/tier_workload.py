"""Work of a tier that trains: that of the scenario, on a smaller model.

The model is the task's, pruned to the tier's budget, with the weights that this leaves of the initial ones. The server
computes the shapes once and writes them into the run folder, where clients read them; without a shared folder each side
computes the same.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property

from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.students import initial_student
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Task
from fedpress.server.fusion import heterofl
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.initial_weights import InitialWeightsError
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
            shapes = json.loads(shared.read_text(encoding="utf-8"))[self.tier]
            return {name: tuple(shape) for name, shape in shapes.items()}
        try:
            return architecture.shapes(self._pruned)
        except InitialWeightsError:  # a client without the file of `init`; the budget gives the shapes all the same
            return architecture.shapes(self._pruned_from(self._whole.blank_model()))

    @cached_property
    def _pruned(self) -> nn.Module:
        """The global model, or an architecture of the task, pruned to the budget; with its remaining weights."""
        return self._pruned_from(self._whole.fresh_model())

    def _pruned_from(self, whole: nn.Module) -> nn.Module:
        with reproducible(self._seed):
            return initial_student.start_of(
                self.task,
                whole,
                self.task.data().proxy.inputs[:1],
                self.budget,
                start(self._tier),
                quantization=self.scenario.students.quantize,
                seed=self._seed,
            )

    @cached_property
    def _made(self) -> nn.Module:
        """An instance of the tier's model; its weights are those of no version."""
        name = start(self._tier).architecture
        if name is None:
            model = self._whole.blank_model()
        else:
            model = initial_student.fresh(self.task, name, seed=self._seed)
        architecture.shrink(model, self.shapes)
        return model

    @cached_property
    def _model(self) -> nn.Module:
        """Version 0: what pruning leaves of the user's weights; with method heterofl, their leading slice."""
        model = copy.deepcopy(self._made)
        if self.scenario.teaching is not None and self.scenario.teaching.method == "heterofl":
            whole = self._whole.fresh_model().state_dict()
            weights = {name: whole[name][heterofl.leading(tensor.shape)] for name, tensor in model.state_dict().items()}
        else:
            weights = self._pruned.state_dict()
            if architecture.shapes(self._pruned) != self.shapes:
                raise InitialWeightsError(
                    f"tier {self.tier!r}: the model pruned here has other shapes than the server's; is it another"
                    " release of torch-pruning, or another `init` file?"
                )
        model.load_state_dict(weights)
        return model


def start(tier: Tier) -> Start:
    """Return the model that a tier's student is pruned from, unless it is searched for."""
    return Start(None if tier.student in ("pruned", "auto") else tier.student, tier.keep_every)
