"""Local optimizers: SGD, AdamW and Muon, by torch's own steps, with a state that can be kept between rounds.

SGD and AdamW are torch's functions: the classes of `torch.optim` import torch's compiler, a second of a processor and
70 MB in each process that trains (docs/decisions/0010). Muon is there as a class alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedpress.client.settings import Training
from fedpress.compression.models import hidden_matrices

Parameters = Mapping[str, nn.Parameter]
"""Parameters to train, by name."""
State = dict[str, Tensor]
"""State of an optimizer: `MOMENT/NAME` -> the moment of a parameter, in its shape, or a scalar."""


class Optimizer(Protocol):
    """Steps of some parameters by their gradients.

    Law: `load(state())` into a new optimizer of the same parameters goes on to the same bits.
    """

    def step(self, rate: float) -> None:
        """Step the parameters that have a gradient.

        Args:
            rate: Learning rate of this step.
        """

    def state(self) -> State:
        """Return the moments; none before the first step."""

    def load(self, state: State) -> None:
        """Take up moments, whose tensors are stepped in place."""


def create(model: nn.Module, settings: Training, loss: Callable[[], Tensor]) -> Optimizer:
    """Return the optimizer of a model's trained parameters.

    Args:
        model: The model, on its device.
        settings: Kind of the optimizer, momentum, betas, weight decay.
        loss: Runs the model on some examples and returns the loss: tells the hidden matrices, for Muon.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if settings.optimizer == "sgd":
        return Sgd(parameters, settings)
    if settings.optimizer == "adamw":
        return AdamW(parameters, settings)
    hidden = hidden_matrices.names(model, loss)
    return Both(
        Muon({name: parameter for name, parameter in parameters.items() if name in hidden}, settings),
        AdamW({name: parameter for name, parameter in parameters.items() if name not in hidden}, settings),
    )


class Sgd:
    """Stochastic gradient descent with momentum and an L2 penalty, as `torch.optim.SGD` to the bit."""

    def __init__(self, parameters: Parameters, settings: Training) -> None:
        self._parameters = parameters
        self._settings = settings
        self._velocities: dict[str, Tensor | None] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Step the parameters that have a gradient."""
        stepped = {name: p for name, p in self._parameters.items() if p.grad is not None}
        velocities = [self._velocities.get(name) for name in stepped]
        sgd(
            list(stepped.values()),
            _gradients(stepped),
            velocities,
            lr=rate,
            momentum=self._settings.velocity_decay,
            weight_decay=self._settings.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self._velocities.update(zip(stepped, velocities, strict=True))

    def state(self) -> State:
        """Return the velocities."""
        return {f"velocity/{name}": tensor for name, tensor in self._velocities.items() if tensor is not None}

    def load(self, state: State) -> None:
        """Take up velocities."""
        self._velocities = {name: state[key] for name in self._parameters if (key := f"velocity/{name}") in state}


class AdamW:
    """Adam with decoupled weight decay, as `torch.optim.AdamW` to the bit."""

    def __init__(self, parameters: Parameters, settings: Training) -> None:
        self._parameters = parameters
        self._settings = settings
        self._moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # mean, mean of squares, steps

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Step the parameters that have a gradient."""
        stepped = {name: p for name, p in self._parameters.items() if p.grad is not None}
        for name, p in stepped.items():
            if name not in self._moments:
                self._moments[name] = (torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), dtype=torch.float32))
        moments = [self._moments[name] for name in stepped]
        settings = self._settings
        adamw(
            list(stepped.values()),
            _gradients(stepped),
            [mean for mean, _, _ in moments],
            [square for _, square, _ in moments],
            [],
            [steps for _, _, steps in moments],
            amsgrad=False,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=rate,
            weight_decay=settings.weight_decay,
            eps=settings.epsilon,
            maximize=False,
        )

    def state(self) -> State:
        """Return both means, and the number of steps."""
        return {
            f"{moment}/{name}": tensor
            for name, moments in self._moments.items()
            for moment, tensor in zip(("mean", "square", "steps"), moments, strict=True)
        }

    def load(self, state: State) -> None:
        """Take up means and numbers of steps."""
        self._moments = {
            name: (state[f"mean/{name}"], state[f"square/{name}"], state[f"steps/{name}"].cpu())
            for name in self._parameters
            if f"steps/{name}" in state
        }


class Muon:
    """Momentum, orthogonalized by Newton-Schulz iterations: `torch.optim.Muon`.

    Filters of a convolution count as the rows of a matrix. The rate is scaled so that steps have the root mean square
    of AdamW's.
    """

    def __init__(self, parameters: Parameters, settings: Training) -> None:
        self._parameters = parameters
        self._matrices: dict[str, nn.Parameter] = {}  # of the same memory
        for name, parameter in parameters.items():
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
            self._matrices[name] = nn.Parameter(parameter.detach().flatten(1))
        self._optimizer = None
        if parameters:
            self._optimizer = torch.optim.Muon(
                self._matrices.values(),
                momentum=settings.velocity_decay,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )

    def step(self, rate: float) -> None:
        """Step the parameters that have a gradient."""
        if self._optimizer is None:
            return
        for name, parameter in self._parameters.items():
            self._matrices[name].grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()  # type: ignore[no-untyped-call]

    def state(self) -> State:
        """Return the velocities."""
        if self._optimizer is None:
            return {}
        kept = self._optimizer.state
        return {
            f"velocity/{name}": kept[matrix]["momentum_buffer"].view_as(self._parameters[name])
            for name, matrix in self._matrices.items()
            if matrix in kept
        }

    def load(self, state: State) -> None:
        """Take up velocities."""
        for name, matrix in self._matrices.items():
            if self._optimizer is not None and (key := f"velocity/{name}") in state:
                self._optimizer.state[matrix] = {"momentum_buffer": state[key].view_as(matrix)}


class Both:
    """Two optimizers of unlike parameters, as one."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    def step(self, rate: float) -> None:
        """Step the parameters of both."""
        for optimizer in self.optimizers:
            optimizer.step(rate)

    def state(self) -> State:
        """Return the moments of both."""
        return {name: tensor for optimizer in self.optimizers for name, tensor in optimizer.state().items()}

    def load(self, state: State) -> None:
        """Take up the moments of both."""
        for optimizer in self.optimizers:
            optimizer.load(state)


def _gradients(parameters: Parameters) -> list[Tensor]:
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
