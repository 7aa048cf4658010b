"""Local optimizers: torch's steps to the bit, and a state that goes on as if there had been no break."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedpress.client.settings import Training
from fedpress.client.training import optimizers


class Small(nn.Module):
    """An embedding, a hidden convolution and a hidden matrix, a head; and a parameter that the loss never reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.idle = nn.Parameter(torch.ones(2, 2))
        self.embedding = nn.Embedding(7, 6)
        self.convolution = nn.Conv1d(6, 5, 3, padding=1)
        self.hidden = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        features = self.convolution(self.embedding(ids).transpose(1, 2)).relu().mean(2)
        return self.head(self.hidden(features).relu())  # type: ignore[no-any-return]


IDS = torch.arange(35).reshape(5, 7) % 7
HIDDEN = {"convolution.weight", "hidden.weight"}


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1, 2, 0, 1]))


def stepped(model: nn.Module, settings: Training, rates: list[float], state: optimizers.State | None = None) -> Tensor:
    optimizer = optimizers.create(model, settings, loss_of(model))
    if state:
        optimizer.load({name: tensor.clone() for name, tensor in state.items()})
    for rate in rates:
        model.zero_grad()
        loss_of(model)().backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
    if state is not None:
        state.clear()
        state.update(optimizer.state())
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs_to_the_bit(weight_decay: float) -> None:
    ours, theirs = Small(), Small()
    settings = Training(optimizer="adamw", weight_decay=weight_decay, beta1=0.8, beta2=0.95, epsilon=1e-6)
    rates = [0.1, 0.05, 0.02]
    found = stepped(ours, settings, rates)
    reference = torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    for rate in rates:
        for group in reference.param_groups:
            group["lr"] = rate
        reference.zero_grad()
        loss_of(theirs)().backward()  # type: ignore[no-untyped-call]
        reference.step()
    assert torch.equal(found, torch.cat([parameter.detach().flatten() for parameter in theirs.parameters()]))


def test_muon_steps_hidden_matrices_and_filters_as_torchs_does_and_adamw_the_rest() -> None:
    ours, theirs = Small(), Small()
    start = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    stepped(ours, Training(optimizer="muon", weight_decay=0.1), [0.02])
    loss_of(theirs)().backward()  # type: ignore[no-untyped-call]
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = named[name].grad
        if gradient is None:
            assert torch.equal(parameter, start[name]), name
        elif name in HIDDEN:
            matrix = nn.Parameter(start[name].flatten(1).clone())
            matrix.grad = gradient.flatten(1)
            torch.optim.Muon([matrix], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()  # type: ignore[no-untyped-call]
            assert torch.equal(parameter, matrix.view_as(parameter)), name
        else:
            single = nn.Parameter(start[name].clone())
            single.grad = gradient
            torch.optim.AdamW([single], lr=0.02, weight_decay=0.1).step()
            assert torch.equal(parameter, single), name


def test_the_steps_of_muon_are_as_large_as_those_of_adamw_beside_it() -> None:
    model = Small()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    stepped(model, Training(optimizer="muon"), [0.01])
    for name in ("convolution.weight", "hidden.weight", "head.weight"):
        size = (dict(model.named_parameters())[name] - start[name]).square().mean().sqrt()
        assert 0.0003 < size < 0.02, name  # AdamW's first step is as long as the rate


@pytest.mark.parametrize(
    "settings",
    [Training(momentum=0.9), Training(optimizer="adamw", weight_decay=0.1), Training(optimizer="muon"), Training()],
    ids=lambda settings: settings.optimizer,
)
def test_a_state_that_is_loaded_goes_on_to_the_same_bits(settings: Training) -> None:
    whole = stepped(Small(), settings, [0.01] * 5)
    model, state = Small(), dict[str, Tensor]()
    stepped(model, settings, [0.01] * 2, state)
    parts = stepped(model, settings, [0.01] * 3, state)
    assert torch.equal(parts, whole)
    if settings.moments:
        model = Small()
        stepped(model, settings, [0.01] * 2)
        assert not torch.equal(stepped(model, settings, [0.01] * 3), whole)


def test_a_frozen_parameter_is_not_stepped_and_has_no_moments() -> None:
    model, state = Small(), dict[str, Tensor]()
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.detach().clone()
    stepped(model, Training(optimizer="adamw", weight_decay=0.5), [0.1] * 2, state)
    assert torch.equal(model.embedding.weight, before)
    assert state and not any("embedding" in name or "idle" in name for name in state)


def test_filters_in_another_memory_order_are_stepped_all_the_same() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
            self(torch.zeros(1, 2, 6, 6))

        def forward(self, images: Tensor) -> Tensor:
            return self.layers(images)  # type: ignore[no-any-return]

    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = Images().to(memory_format=order)  # type: ignore[call-overload]
        images = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
        optimizer = optimizers.create(model, Training(optimizer="muon"), lambda: model(images).square().mean())  # noqa: B023
        model(images).square().mean().backward()
        optimizer.step(0.1)
        found.append(model.layers[1].weight.detach())
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=0)
