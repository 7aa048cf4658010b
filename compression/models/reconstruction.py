"""Columns of a weight matrix settled one by one, while those still free make up for the errors (optimal brain surgeon).

For a layer y = W x, the squared error of its outputs is tr((W - W') H (W - W')^T) with H = E[x x^T]. When one column is
replaced, say rounded or set to zero, the best change of the columns after it follows from the inverse of H:

    E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", ICLR 2023, Algorithm 1: the Cholesky factor of the inverse Hessian, which holds what
    is left of the inverse after each column; changes to later blocks of 128 columns at once; 1 % of the mean
    diagonal added to it.

Law, a property test: with H diagonal nothing is passed on, and each column is settled as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 128
DAMPING: Final = 0.01

ReplaceColumn = Callable[[int, Tensor], Tensor]
"""Maps a column's index and its values (groups, outputs) to the values that replace them."""
Begin = Callable[[slice, Tensor, Tensor], ReplaceColumn]
"""Called before each block with its columns, their values (groups, outputs, columns) and the diagonal of the Cholesky
factor, (groups, columns): the error of replacing w by v is ((w - v) / diagonal)^2."""


def reconstructed(weight: Tensor, moments: Tensor, begin: Begin, block: int = BLOCK) -> Tensor:
    """Return the weight with every column settled.

    Args:
        weight: Weight (groups, outputs, inputs).
        moments: Second moments of the inputs, (groups, inputs, inputs).
        begin: Returns how the columns of a block are settled.
        block: Columns of a block.
    """
    free = weight.double().clone()
    factor = inverse_factor(moments)
    settled = torch.empty_like(free)
    inputs = free.shape[2]
    for first in range(0, inputs, block):
        columns = slice(first, min(first + block, inputs))
        inner = factor[:, columns, columns]
        values = free[:, :, columns]
        replace_column = begin(columns, values, inner.diagonal(dim1=1, dim2=2))
        errors = torch.empty_like(values)
        for index in range(values.shape[2]):
            column = values[:, :, index]
            settled[:, :, first + index] = replace_column(first + index, column)
            error = (column - settled[:, :, first + index]) / inner[:, index, index, None]
            values[:, :, index + 1 :] -= error[:, :, None] * inner[:, None, index, index + 1 :]
            errors[:, :, index] = error
        free[:, :, columns.stop :] -= errors @ factor[:, columns, columns.stop :]
    return settled


def inverse_factor(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments, float64 (groups, inputs, inputs).

    Args:
        moments: Second moments, (groups, inputs, inputs).
        damping: Fraction of the mean diagonal to add to the diagonal.
    """
    damped = moments.double().clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(mean > 0, damping * mean, 1.0)  # inputs that are always zero: every column by itself
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
