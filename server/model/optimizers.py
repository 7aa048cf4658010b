"""Server optimizers: rules on the pseudo-gradient, the negative of the mean update.

Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR). An optimizer is made by a constructor from the master
vector, whose memory it shares and steps in place. The adaptive rules step densely: a coordinate that no client sent has
a pseudo-gradient of zero. Their epsilon must be at least 1e-3 (section 5 there), or such coordinates explode when first
sent. Steps equal those of torch's optimizers bit by bit, where torch has the rule; torch's own are not used, since the
first one that a process makes imports torch's compiler, for a second and 70 MB.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fedpress.compression.tensors.layout import Vector
from fedpress.compression.tensors.mask import MaskChange
from fedpress.server.model.settings import MIN_EPSILON, OptimizerSettings


class Optimizer(ABC):
    """A rule, and its state between steps.

    Args:
        master: the parameters, float32 (n,), whose memory is shared.

    Attributes:
        master: the parameters, float32 (n,), stepped in place.
        state: tensors by name, of shape (n,) or (); rates and the like come from the constructor.
    """

    def __init__(self, master: Vector) -> None:
        self.master = torch.from_numpy(master)
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def descend(self, gradient: Tensor) -> None:
        """Move the master by one step against the gradient (n,), which the rule may overwrite."""

    def step(self, mean_update: Vector) -> None:
        """Move the master by one step along the mean update (n,), which is overwritten."""
        with torch.no_grad():
            self.descend(torch.from_numpy(np.negative(mean_update, out=mean_update)))

    def kept(self, name: str, first: float = 0.0) -> Tensor:
        """Return a tensor (n,) of the state.

        Args:
            name: name of the tensor in `state`.
            first: initial value of all its entries.
        """
        if name not in self.state:
            self.state[name] = torch.full_like(self.master, first)
        return self.state[name]


ServerOptimizer = Callable[[Vector], Optimizer]
"""Takes the master vector (n,), float32, and returns the optimizer that steps it in place."""


def of(settings: OptimizerSettings, learning_rate: float | None = None) -> ServerOptimizer:
    """Return the optimizer that settings describe.

    Args:
        settings: the section `server` of a scenario.
        learning_rate: learning rate in place of that of the settings; None: theirs.
    """
    rate = settings.learning_rate if learning_rate is None else learning_rate
    if settings.optimizer == "adam":
        return adam(rate, settings.beta1, settings.beta2, settings.epsilon)
    if settings.optimizer == "yogi":
        return yogi(rate, settings.beta1, settings.beta2, settings.epsilon)
    if settings.optimizer == "adagrad":
        return adagrad(rate, settings.epsilon)
    if settings.optimizer == "majority_vote":
        return majority_vote(rate)
    return sgd(rate, settings.momentum)


def sgd(learning_rate: float = 1.0, momentum: float = 0.0) -> ServerOptimizer:
    """Return gradient descent; at rate 1 FedAvg, and with momentum FedAvgM (Hsu et al. 2019).

    Args:
        learning_rate: length of the step, above 0.
        momentum: decay of the velocity, in [0, 1).
    """
    _positive("learning_rate", learning_rate)
    if not 0 <= momentum < 1:
        raise ValueError(f"server momentum must be in [0, 1), and is {momentum}")
    return lambda master: Sgd(master, learning_rate, momentum)


def adam(
    learning_rate: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = MIN_EPSILON
) -> ServerOptimizer:
    """Return FedAdam, with the bias correction of Kingma and Ba 2015.

    Args:
        learning_rate: length of the step, above 0.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the deviation, at least 1e-3.
    """
    _check_adaptive(learning_rate, epsilon)
    return lambda master: Adam(master, learning_rate, beta1, beta2, epsilon)


def yogi(
    learning_rate: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = MIN_EPSILON
) -> ServerOptimizer:
    """Return FedYogi (Reddi et al. 2021, algorithm 2).

    Args:
        learning_rate: length of the step, above 0.
        beta1: decay of the first moment.
        beta2: rate of the second moment's additive steps.
        epsilon: added to the deviation, at least 1e-3.
    """
    _check_adaptive(learning_rate, epsilon)
    return lambda master: Yogi(master, learning_rate, beta1, beta2, epsilon)


def adagrad(learning_rate: float = 1e-1, epsilon: float = MIN_EPSILON) -> ServerOptimizer:
    """Return FedAdagrad (Reddi et al. 2021, algorithm 2).

    Args:
        learning_rate: length of the step, above 0.
        epsilon: added to the root of the summed squares, at least 1e-3.
    """
    _check_adaptive(learning_rate, epsilon)
    return lambda master: Adagrad(master, learning_rate, epsilon)


def majority_vote(learning_rate: float) -> ServerOptimizer:
    """Return the rule that moves every weight by `learning_rate` along the majority's sign, weighted by examples.

    For clients that send signs (`encoders.signsgd`); a tie moves nothing. Bernstein et al. 2018, "signSGD: Compressed
    Optimization for Non-Convex Problems" (ICML), algorithm 1, the distributed form.
    """
    _positive("learning_rate", learning_rate)
    return lambda master: MajorityVote(master, learning_rate)


def ef21(learning_rate: float = 1.0) -> ServerOptimizer:
    """Return the rule that steps along the sum of all mean updates, for clients that send changes (`encoders.ef21`).

    That sum is the mean of the clients' estimates only if all of them take part in every round with the same weights;
    with fewer it would stand for the estimates of some only. Richtárik, Sokolov and Fatkhullin 2021, "EF21: A
    New, Simpler, Theoretically Better, and Practically Faster Error Feedback" (NeurIPS), algorithm 2.
    """
    _positive("learning_rate", learning_rate)
    # The velocity of momentum 1 is the plain sum of the gradients.
    return lambda master: Sgd(master, learning_rate, momentum=1.0)


def remapped(state: Mapping[str, Tensor], change: MaskChange) -> dict[str, Tensor]:
    """Return an optimizer's state for the master within another mask; new entries begin at zero.

    Args:
        state: tensors by name, of shape (n,) or ().
        change: change of the mask.
    """
    size = len(change.survivors) + len(change.removed)
    return {
        name: torch.from_numpy(change.apply(tensor.numpy())) if tensor.shape == (size,) else tensor
        for name, tensor in state.items()
    }


class Sgd(Optimizer):
    """Gradient descent along a velocity v = momentum * v + g (Polyak 1964).

    Args:
        master: the parameters, float32 (n,).
        learning_rate: length of the step.
        momentum: decay of the velocity; 0: there is none.
    """

    def __init__(self, master: Vector, learning_rate: float, momentum: float) -> None:
        super().__init__(master)
        self._rate, self._momentum = learning_rate, momentum

    def descend(self, gradient: Tensor) -> None:
        """Set v = momentum * v + g, then master -= rate * v."""
        if self._momentum:
            gradient = self.kept("momentum_buffer").mul_(self._momentum).add_(gradient)
        self.master.add_(gradient, alpha=-self._rate)


class Adam(Optimizer):
    """Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization" (ICLR), algorithm 1.

    Args:
        master: the parameters, float32 (n,).
        learning_rate: length of the step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the deviation.
    """

    def __init__(self, master: Vector, learning_rate: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(master)
        self._rate, self._beta1, self._beta2, self._epsilon = learning_rate, beta1, beta2, epsilon

    def descend(self, gradient: Tensor) -> None:
        """Move along the mean gradient over the root of the mean square, both corrected for their bias."""
        steps = self.state.setdefault("step", torch.zeros(()))
        steps += 1
        mean = self.kept("exp_avg").lerp_(gradient, 1 - self._beta1)
        variance = self.kept("exp_avg_sq").mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        rate = self._rate / (1 - self._beta1 ** steps.item())
        deviation = variance.sqrt().div_((1 - self._beta2 ** steps.item()) ** 0.5)
        self.master.addcdiv_(mean, deviation.add_(self._epsilon), value=-rate)


class Yogi(Optimizer):
    """v += (1 - beta2) * sign(g^2 - v) * g^2, so that v cannot jump.

    Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization" (NeurIPS), algorithm 2.

    Args:
        master: the parameters, float32 (n,).
        learning_rate: length of the step.
        beta1: decay of the first moment.
        beta2: rate of the second moment's additive steps.
        epsilon: added to the deviation.
    """

    def __init__(self, master: Vector, learning_rate: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(master)
        self._rate, self._beta1, self._beta2, self._epsilon = learning_rate, beta1, beta2, epsilon

    def descend(self, gradient: Tensor) -> None:
        """Move along the mean of the gradients over the root of the second moment."""
        square = gradient.square()
        mean = self.kept("mean").lerp_(gradient, 1 - self._beta1)
        variance = self.kept("variance", self._epsilon**2)
        variance.addcmul_(torch.sign(square - variance), square, value=1 - self._beta2)
        self.master.addcdiv_(mean, variance.sqrt().add_(self._epsilon), value=-self._rate)


class Adagrad(Optimizer):
    """Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods" (JMLR 12), the diagonal form.

    Args:
        master: the parameters, float32 (n,).
        learning_rate: length of the step.
        epsilon: added to the root.
    """

    def __init__(self, master: Vector, learning_rate: float, epsilon: float) -> None:
        super().__init__(master)
        self._rate, self._epsilon = learning_rate, epsilon

    def descend(self, gradient: Tensor) -> None:
        """Move along the gradient over the root of the sum of all squares."""
        squares = self.kept("sum").addcmul_(gradient, gradient)
        self.master.addcdiv_(gradient, squares.sqrt().add_(self._epsilon), value=-self._rate)


class MajorityVote(Optimizer):
    """A step of the same length for every weight, against the sign of its gradient.

    Args:
        master: the parameters, float32 (n,).
        learning_rate: length of the step.
    """

    def __init__(self, master: Vector, learning_rate: float) -> None:
        super().__init__(master)
        self._rate = learning_rate

    def descend(self, gradient: Tensor) -> None:
        """Move every weight by the rate, against the sign of its gradient."""
        self.master.sub_(gradient.sign(), alpha=self._rate)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"server {name} must be positive, and is {value}")


def _check_adaptive(learning_rate: float, epsilon: float) -> None:
    _positive("learning_rate", learning_rate)
    if epsilon < MIN_EPSILON:
        raise ValueError(
            f"server epsilon must be at least {MIN_EPSILON}, and is {epsilon}: rarely sent coordinates would explode"
        )
