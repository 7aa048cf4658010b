"""Server optimisers: torch's rules (and Yogi) on the pseudo-gradient, the mean update with its sign turned.

Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR). An optimiser is made by a constructor from the master
vector, whose memory it shares and steps in place; its state is torch's `state_dict()`. The adaptive rules step
densely: a coordinate that nobody sent is a pseudo-gradient of zero. Their epsilon must be at least 1e-3 (section 5
    there), or such coordinates explode when first sent.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from fedpress.compression.mask import Move
from fedpress.compression.vector import Vector
from fedpress.server.checkpoint import State

ServerOptimizer = Callable[[Vector], Optimizer]
"""Takes the master vector (n,), float32, and returns the torch optimiser that steps it in place."""

MIN_EPSILON = 1e-3


def sgd(learning_rate: float = 1.0, momentum: float = 0.0) -> ServerOptimizer:
    """Gradient descent; `learning_rate=1` without momentum is FedAvg, with momentum FedAvgM (Hsu et al. 2019)."""
    _positive("learning_rate", learning_rate)
    if not 0 <= momentum < 1:
        raise ValueError(f"server momentum must be in [0, 1), and is {momentum}")
    return lambda master: torch.optim.SGD([_shared(master)], lr=learning_rate, momentum=momentum)


def adam(
    learning_rate: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = MIN_EPSILON
) -> ServerOptimizer:
    """FedAdam, with torch's bias correction."""
    _check_adaptive(learning_rate, epsilon)
    return lambda master: torch.optim.Adam([_shared(master)], lr=learning_rate, betas=(beta1, beta2), eps=epsilon)


def yogi(
    learning_rate: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = MIN_EPSILON
) -> ServerOptimizer:
    """FedYogi (Reddi et al. 2021, algorithm 2)."""
    _check_adaptive(learning_rate, epsilon)
    return lambda master: Yogi([_shared(master)], learning_rate, beta1, beta2, epsilon)


def adagrad(learning_rate: float = 1e-1, epsilon: float = MIN_EPSILON) -> ServerOptimizer:
    """FedAdagrad."""
    _check_adaptive(learning_rate, epsilon)
    return lambda master: torch.optim.Adagrad([_shared(master)], lr=learning_rate, eps=epsilon)


def majority_vote(learning_rate: float) -> ServerOptimizer:
    """Move every weight by `learning_rate` in the direction that most clients, weighted by examples, voted for.

    For clients that send signs (`compression.signs`); a tie moves nothing. Bernstein et al. 2018, "signSGD: Compressed
    Optimisation for Non-Convex Problems" (ICML), algorithm 1, the distributed form.
    """
    _positive("learning_rate", learning_rate)
    return lambda master: MajorityVote([_shared(master)], learning_rate)


def ef21(learning_rate: float = 1.0) -> ServerOptimizer:
    """Step along the sum of all mean updates so far, for clients that send changes (`compression.ef21`).

    That sum is the mean of the clients' estimates only if all of them take part in every round with the same weights;
    with fewer it would count the estimates of some for those of all. Richtárik, Sokolov and Fatkhullin 2021, "EF21: A
    New, Simpler, Theoretically Better, and Practically Faster Error Feedback" (NeurIPS), algorithm 2.
    """
    _positive("learning_rate", learning_rate)
    # torch's momentum is not damped: the buffer of momentum 1 is the plain sum of the gradients.
    return lambda master: torch.optim.SGD([_shared(master)], lr=learning_rate, momentum=1.0)


def step(optimizer: Optimizer, mean_update: Vector) -> None:
    """Move the optimiser's master vector in place by one step along the mean update (n,)."""
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.from_numpy(np.negative(mean_update))
    optimizer.step()
    parameter.grad = None


def saved(optimizer: Optimizer) -> State:
    """Return what the optimiser keeps of the master between steps; rates and the like come from its constructor.

    Raises:
        TypeError: it keeps something other than tensors, numbers and None.
    """
    (parameter,) = optimizer.param_groups[0]["params"]
    found = State({}, {})
    for name, value in optimizer.state[parameter].items() if parameter in optimizer.state else ():
        if isinstance(value, torch.Tensor):
            found.arrays[name] = value.detach().numpy()
        elif value is None or isinstance(value, bool | int | float):
            found.meta[name] = value
        else:
            raise TypeError(
                f"the server's optimiser keeps {name!r}, a {type(value).__name__}; a checkpoint holds tensors, numbers"
                " and None"
            )
    return found


def restore(optimizer: Optimizer, state: State) -> None:
    """Take up what `saved` returned."""
    (parameter,) = optimizer.param_groups[0]["params"]
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state.arrays.items()}
    optimizer.state[parameter] = {**tensors, **state.meta}
    if not optimizer.state[parameter]:
        del optimizer.state[parameter]  # the rules look whether there is a state at all


def moved(state: State, move: Move) -> State:
    """Return what `saved` returned, for the master of another mask: entries that it lacked begin at zero."""
    size = len(move.survivors) + len(move.fallen)
    return State(
        {name: move.new(array) if array.shape == (size,) else array for name, array in state.arrays.items()}, state.meta
    )


class Yogi(Optimizer):
    """The rule that torch lacks: v += (1 - beta2) * sign(g^2 - v) * g^2, so that v cannot jump.

    Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization" (NeurIPS), algorithm 2.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, beta1: float, beta2: float, epsilon: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["variance"] = torch.full_like(parameter, group["epsilon"] ** 2)
                mean, variance = state["mean"], state["variance"]
                square = gradient.square()
                mean.lerp_(gradient, 1 - group["beta1"])
                variance.addcmul_(torch.sign(square - variance), square, value=1 - group["beta2"])
                parameter.addcdiv_(mean, variance.sqrt().add_(group["epsilon"]), value=-group["lr"])


class MajorityVote(Optimizer):
    """The rule that torch lacks: a step of the same length for every weight, against the sign of its gradient."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def _shared(master: Vector) -> torch.Tensor:
    return torch.from_numpy(master)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"server {name} must be positive, and is {value}")


def _check_adaptive(learning_rate: float, epsilon: float) -> None:
    _positive("learning_rate", learning_rate)
    if epsilon < MIN_EPSILON:
        raise ValueError(
            f"server epsilon must be at least {MIN_EPSILON}, and is {epsilon}: rarely sent coordinates would explode"
        )
