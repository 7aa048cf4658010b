"""GPTQ: columns of a weight are rounded one by one, and the columns not yet rounded make up for the errors.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, Algorithm 1 (`reconstruction`). Columns of the largest second moment come first (the authors'
`act_order`), which needs no more bytes here: codes are stored in the order of the weights, and scales are found before,
from the float weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedpress.compression.models import reconstruction


def rounded(weight: Tensor, steps: Tensor, moments: Tensor, largest: int) -> Tensor:
    """Return the codes of a weight, in its shape; weights that are zero keep code zero.

    Args:
        weight: Float weight (groups, outputs, inputs).
        steps: Scale of each entry, likewise, above 0.
        moments: Second moments of the inputs, (groups, inputs, inputs).
        largest: Largest code.
    """
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    weight, scales, free = (
        part.gather(2, order[:, None].expand_as(part)) for part in (weight, steps.double(), weight != 0)
    )
    rows = order[:, :, None].expand_as(moments)
    moments = moments.gather(1, rows).gather(2, rows.transpose(1, 2))

    def nearest(index: int, column: Tensor) -> Tensor:
        codes = torch.round(column / scales[:, :, index]).clamp(-largest, largest)
        return codes * scales[:, :, index] * free[:, :, index]

    restored = reconstruction.reconstructed(weight, moments, lambda *_: nearest)
    codes = torch.round(restored / scales)
    return torch.empty_like(codes).scatter_(2, order[:, None].expand_as(codes), codes)
