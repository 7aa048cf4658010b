"""Teaching on real data: what a good model knows reaches models that know nothing, and through them nothing is lost."""

import pytest
import torch
from torch import nn

from fedpress.compression.models.pruning import structural
from fedpress.compression.models.task import Examples, evaluate
from fedpress.server.fusion.mutual_distillation import teach
from fedpress.server.fusion.settings import Teaching
from fedpress.simulations.tasks.digits import Digits

TASK = Digits()


def trained(model: nn.Module, examples: Examples, epochs: int) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(epochs):
        for batch in torch.randperm(len(examples.targets)).split(20):
            optimizer.zero_grad()
            TASK.loss(model(examples.inputs[batch]), examples.targets[batch]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module) -> float:
    return evaluate(model, TASK, TASK.data().test).accuracy


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """A global model that was never trained, and a small one that was."""
    torch.manual_seed(1)
    small = structural.prune_to(TASK.model(), TASK.data().proxy.inputs[:1], 8000)
    return TASK.model(), trained(small, TASK.data().train, 14)


def test_a_global_model_that_nobody_trains_learns_from_the_tiers(models: tuple[nn.Module, nn.Module]) -> None:
    whole, small = models
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    proxy, settings = TASK.data().proxy.inputs, Teaching(epochs=25, learning_rate=0.003)
    taught, kept = teach(whole, [small], proxy, settings, trained=False, seed=3)
    assert accuracy(whole) < 0.3 < 0.8 < accuracy(small)
    assert accuracy(taught) > accuracy(small) - 0.04
    assert accuracy(kept) > accuracy(small) - 0.03  # it was taught by its own pupil
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())
    again, _ = teach(whole, [small], proxy, settings, trained=False, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), again.parameters(), strict=True))


def test_a_model_that_clients_train_is_one_of_the_ensemble(models: tuple[nn.Module, nn.Module]) -> None:
    """A global model that is right pulls a tier that knows nothing up; left out of the ensemble, it is forgotten."""
    small = models[1]
    torch.manual_seed(2)
    empty = structural.prune_to(TASK.model(), TASK.data().proxy.inputs[:1], 4000)
    proxy, settings = TASK.data().proxy.inputs, Teaching(epochs=25, learning_rate=0.003)
    within = teach(small, [empty], proxy, settings, trained=True, seed=3)
    without = teach(small, [empty], proxy, settings, trained=False, seed=3)
    assert accuracy(empty) < 0.3
    assert accuracy(within[0]) > accuracy(small) - 0.03
    assert accuracy(within[1]) > 0.5 > 0.3 > accuracy(without[0])
