"""Class-balanced distillation: rare classes of the proxy data count as much as common ones.

Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
equation 2: an example of a class with n examples has weight (1 - beta) / (1 - beta^n). With beta = 0 all examples have
equal weight, as beta goes to 1 all classes do. Classes are labels where they are visible, else the teacher's answers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(classes: Tensor, beta: float) -> Tensor:
    """Return the weight of each example, with a mean of 1.

    >>> weights(torch.tensor([0, 0, 0, 1]), beta=0.999999)
    tensor([0.6667, 0.6667, 0.6667, 2.0000])

    Args:
        classes: Class of each example, int64 (N,).
        beta: Strength of the balance, in [0, 1).

    Returns:
        Weights, float32 (N,).
    """
    _, index, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    by_class = (1 - beta) / (1 - torch.full((1,), beta, dtype=torch.float64).pow(counts))
    weight: Tensor = by_class[index]
    return (weight / weight.mean()).float()
