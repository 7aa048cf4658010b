"""Adaptive rounding: each weight is rounded up or down so that the outputs of its layer stay close.

M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.

Rounding to nearest is not optimal for a layer, because its errors add up over the inputs. A soft choice h(V) in [0, 1]
between the code below and the code above is trained to keep the layer's outputs, and driven toward 0 or 1 in the end
(section 3.2, equations 21 to 24). The error of the outputs is that of equation 14, from the second moments H
of the inputs: tr(D H D^T) for a change D of the weight. Its gradient, 2 D H, is exact and takes one product a step; no
inputs are kept. Gradients are written out, because autograd records nothing within an observed forward pass.

Error bound, a property test: |weight - restored| <= scale, for weights of at most `levels(bits)` scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, LEAST_STEPS = 1000, 200
"""Training steps of a layer, and of a wide one."""
WIDTH = 128
"""Inputs above which a layer gets fewer steps: a step costs their square, so that a weight costs the same in all."""
PATH = 10.0
"""Learning rate times steps: how far a choice can go."""
REGULARIZATION = 3.0
"""Weight of the regularization, in the unit of the error below."""
WARM_UP = 0.2
"""Fraction of the steps before the regularization sets in."""
BETA = (20.0, 2.0)
"""Exponent of the regularization, at its first step and at its last."""
STRETCH = (-0.1, 1.1)
"""Range of the sigmoid before h clips it to [0, 1], so that h reaches both ends."""


def rounded(weight: Tensor, steps: Tensor, moments: Tensor, largest: int, *, iterations: int | None = None) -> Tensor:
    """Return the codes of a weight, in its shape; weights that are zero keep code zero.

    Args:
        weight: Float weight (groups, outputs, inputs).
        steps: Scale of each entry, likewise, above 0.
        moments: Second moments of the inputs, (groups, inputs, inputs).
        largest: Largest code.
        iterations: Training steps; None: `STEPS`, fewer above a width of `WIDTH`.
    """
    if iterations is None:
        iterations = max(LEAST_STEPS, STEPS * WIDTH // max(WIDTH, weight.shape[2]))
    weight, steps, moments = weight.float(), steps.float(), moments.float()
    exact = weight / steps
    inside = exact.clamp(-largest, largest)
    below = inside.floor()
    above = (below + 1).clamp(max=largest)
    zero = weight == 0
    low, high = STRETCH
    inner = (inside - below - low) / (high - low)  # in (0, 1): h starts at the float weight, cut off
    choice = torch.log(inner / (1 - inner))
    optimizer = torch.optim.Adam([choice], PATH / iterations)
    # change = start + soft * width
    start, width = (torch.where(zero, 0.0, part * steps) for part in (below - exact, above - below))
    # Unit of the error: that of one step, were inputs unrelated; so the regularization fits layers of any scale.
    unit = moments.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * steps.square().mean(dim=(1, 2), keepdim=True)
    moments = moments / unit.clamp(min=torch.finfo(torch.float32).tiny)
    for count in range(iterations):
        sigmoid = torch.sigmoid(choice)
        soft = (sigmoid * (high - low)).add_(low).clamp_(0, 1)
        slope = (torch.addcmul(start, soft, width) @ moments).mul_(width).mul_(2)
        done = (count / iterations - WARM_UP) / (1 - WARM_UP)
        if done > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - done)
            middle = 2 * soft - 1
            slope -= middle.abs().pow_(beta - 1).copysign_(middle).mul_(2 * REGULARIZATION * beta)
        slope.mul_((soft > 0) & (soft < 1))
        choice.grad = slope.mul_(sigmoid).mul_(1 - sigmoid).mul_(high - low)
        optimizer.step()
    return torch.where(zero, 0.0, torch.where(choice > 0, above, below))
