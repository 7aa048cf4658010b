"""Work of a tier that trains: that of the scenario, on a smaller model.

The model is the task's, pruned to the tier's budget, with the weights that this leaves of the initial ones. Those that
are a draw, other ones under another seed, are scaled to the narrower layers, as if they had been drawn for them; those
that are not stay as they are. The server computes the shapes once and writes them into the run folder, where clients
read them; without a shared folder each side computes the same.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property

import torch
from torch import Tensor, nn

from fedpress.compression import files, seeds
from fedpress.compression.models import architecture
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models.pruning import importance
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.students import initial_student
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.students.settings import Budget
from fedpress.compression.models.task import Task
from fedpress.server.fusion import heterofl
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.initial_weights import InitialWeightsError
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.students import ADAPTER, Tier


class TierWorkload(Workload):
    """Work of a tier, for its clients and for the server.

    Args:
        whole: Work on the global model, whose data and settings these are.
        tier: The tier.
    """

    def __init__(self, whole: Workload, tier: Tier) -> None:
        super().__init__(whole.scenario, whole.out, own_data=whole.own_data, bases=whole.bases)
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
    def form(self) -> tuple[dict[str, architecture.Shape], dict[str, int]]:
        """Shapes of the tier's model by the names of its tensors, and `architecture.sizes`.

        From the run folder if they are there.

        Raises:
            BudgetError: The task's model cannot be within the budget.
            PruneError: The task's model cannot be pruned.
        """
        shared = RunFolder(self.out).architectures if self.out else None
        if shared and shared.exists():
            shapes, sizes = json.loads(files.read_text(shared))[self.tier]
            return {name: tuple(shape) for name, shape in shapes.items()}, sizes
        try:
            return _form(self._pruned)
        except InitialWeightsError:  # a client without the file of `init`; the budget gives the shapes all the same
            return _form(self._pruned_from(self._whole.blank_model()))

    @cached_property
    def _pruned(self) -> nn.Module:
        """The global model, or an architecture of the task, pruned to the budget; with its remaining weights."""
        return self._pruned_from(self._whole.fresh_model())

    def _pruned_from(self, whole: nn.Module) -> nn.Module:
        with reproducible(self._seed):
            return initial_student.start_of(
                self.task,
                whole,
                model_inputs.first(self.task.data().proxy.inputs),
                self.budget,
                start(self._tier),
                lambda _: importance.named(self.scenario.students.prune),
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
            model = self.freeze(initial_student.fresh(self.task, name, seed=self._seed))
        architecture.shrink(model, *self.form)
        return model

    @cached_property
    def _model(self) -> nn.Module:
        """Version 0: what pruning leaves of the user's weights; with method heterofl, their leading slice."""
        model = copy.deepcopy(self._made)
        if self._sliced:
            weights = self._slice_for(model)
        else:
            weights = self._pruned.state_dict()
            if _form(self._pruned) != self.form:
                raise InitialWeightsError(
                    f"tier {self.tier!r}: the model pruned here has other shapes than the server's; is it another"
                    " release of torch-pruning, or another `init` file?"
                )
        model.load_state_dict(weights)
        if not self._sliced:
            self._scale_drawn(model)
        return model

    def _slice_for(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the leading part of each of the global model's weights, of the shapes of a model.

        Adapters of a smaller rank are such parts: of LoRA's A the first rows, of B the first columns (HetLoRA: Y. J.
        Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024).

        Raises:
            InitialWeightsError: The model is no such slice.
        """
        whole, weights = self._whole.fresh_model().state_dict(), {}
        for name, tensor in model.state_dict().items():
            full = whole.get(name)
            if full is None or full.ndim != tensor.ndim or any(map(int.__gt__, tensor.shape, full.shape)):
                of_whole = "has no such tensor" if full is None else f"has {tuple(full.shape)}"
                raise InitialWeightsError(
                    f"tier {self.tier!r}: {name!r} of shape {tuple(tensor.shape)} is no slice of the global model's,"
                    f" which {of_whole}; with teaching.method heterofl leave `student` out, or name a smaller one of"
                    " the same layers"
                )
            weights[name] = full[heterofl.leading(tensor.shape)]
        return weights

    @property
    def _sliced(self) -> bool:
        return self.scenario.teaching is not None and self.scenario.teaching.method == "heterofl"

    def _scale_drawn(self, model: nn.Module) -> None:
        """Scale the drawn weights of linear and convolutional layers with fewer inputs than before, in place.

        By the root of the quotient of their numbers of inputs, so that their outputs keep their variance, as by the
        usual initializations: without it a network that is pruned before training hardly learns.
        """
        drawn, whole = self._drawn, dict(self._unpruned.named_parameters(remove_duplicate=False))
        tables = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
        scaled: set[int] = set()
        for path, layer in model.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or id(layer.weight) in tables:
                continue
            inputs = whole[f"{path}.weight"][0].numel() / layer.weight[0].numel()
            for name, parameter in layer.named_parameters(prefix=path, recurse=False):
                if name in drawn and id(parameter) not in scaled:
                    parameter.data *= inputs**0.5
                    scaled.add(id(parameter))

    @cached_property
    def _unpruned(self) -> nn.Module:
        return self._unpruned_under("model")

    @cached_property
    def _drawn(self) -> set[str]:
        """Names of the parameters that are others under another seed; none of those from the file of `init`."""
        if start(self._tier).architecture is None and self.scenario.init is not None:
            return set()
        other = dict(self._unpruned_under("another model").named_parameters())
        return {name for name, one in self._unpruned.named_parameters() if not torch.equal(one, other[name])}

    def _unpruned_under(self, purpose: str) -> nn.Module:
        """Return the model before it is pruned, its weights made under the seed of a purpose."""
        begin = start(self._tier)
        if begin.architecture is None:
            model = self._whole.made_under(purpose)
            self._whole.fill_from_base(model)  # pretrained weights are no draw
        else:
            seed = seeds.derive(self.federation, self.scenario.seed, purpose)
            model = initial_student.fresh(self.task, begin.architecture, seed=seed)
        return model


def _form(model: nn.Module) -> tuple[dict[str, architecture.Shape], dict[str, int]]:
    return architecture.shapes(model), architecture.sizes(model)


def start(tier: Tier) -> Start:
    """Return the model that a tier's student is pruned from, unless it is searched for."""
    return Start(None if tier.student in ("pruned", "auto", ADAPTER) else tier.student, tier.layers, tier.inherit)
