"""Wrappers around any encoder: a bound on the norm of what is encoded; a density that falls over rounds."""

import math
from collections.abc import Callable

import numpy as np

from fedpress.compression import errors
from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.encoders.error_feedback import S
from fedpress.compression.tensors.layout import BLOCK, Vector
from fedpress.compression.tensors.side_info import SideInfo


def clipped(inner: Encoder[S], max_norm: float) -> Encoder[S]:
    """Scale an update that is longer than `max_norm` (L2) down to it.

    Around `error_feedback` it bounds what one round of training adds, and what is cut off is lost on purpose; inside
    it bounds what is sent, and what is cut off stays in the residual.

    Args:
        inner: The encoder of the clipped update.
        max_norm: Greatest L2 norm of the whole update, finite and above 0.

    Raises:
        ValueError: The norm is out of range.

    >>> from fedpress.compression.tensors.layout import Layout, TensorSpec
    >>> from fedpress.compression.encoders import encoder
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (2,), "float32"),)))
    >>> encoded = clipped(encoder.dense(), 2.5).encode(np.array([3, -4], np.float32), None, side_info, 0)
    >>> encoded.decoded.dense().tolist()
    [1.5, -2.0]
    """
    if not 0 < max_norm < np.inf:
        raise ValueError(f"max_norm is {max_norm}, expected a finite number above 0")

    def encode(update: Vector, state: S, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Encoded[S]:
        update = summed(update, addend, side_info.layout)
        norm = _norm(update)
        if not np.isfinite(norm):
            raise errors.NonFiniteError("the update holds NaN or infinity, so it has no norm; did training diverge?")
        if norm > max_norm:
            update = np.multiply(update, np.float32(max_norm / norm), out=update if update.flags.writeable else None)
        return inner.encode(update, state, side_info, seed)

    return inner._replace(encode=encode)


def warmed_up(make: Callable[[float], Encoder[S]], start: float, end: float, rounds: int) -> Encoder[S]:
    """Let the density go from `start` to `end` exponentially over the first `rounds` rounds.

    In round r of `SideInfo.round` it is start * (end / start)^(r / rounds), from round `rounds` on it is `end`.

    Lin et al. 2018, "Deep Gradient Compression", section 3.3.

    Args:
        make: density -> encoder; its state must not depend on the density.
        start: Density in round 0, 0 < start <= 1.
        end: Density after the warm-up, 0 < end <= 1.
        rounds: Length of the warm-up; 0 for none.

    Raises:
        ValueError: A density or the number of rounds is out of range.

    >>> from fedpress.compression.tensors.layout import Layout, TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> layout = Layout((TensorSpec("weight", (100,), "float32"),))
    >>> warm = warmed_up(lambda density: encoder.sparse(selection.top_k(density), values.TERNARY), 1, 0.01, 2)
    >>> for round in range(4):
    ...     print(warm.encode(np.ones(100, np.float32), None, SideInfo(layout, round), 0).decoded.count)
    100
    10
    1
    1
    """
    for density in (start, end):
        if not 0 < density <= 1:
            raise ValueError(f"density {density} is out of range; expected 0 < density <= 1, such as 0.01 for 1 %")
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}, expected at least 0")

    def encode(update: Vector, state: S, side_info: SideInfo, seed: int, addend: Vector | None = None) -> Encoded[S]:
        done = side_info.round >= rounds
        density = end if done else start * (end / start) ** (side_info.round / rounds)
        return make(density).encode(update, state, side_info, seed, addend)

    return make(end)._replace(encode=encode)


def _norm(update: Vector) -> float:
    """Return the L2 norm, summed in float64 by blocks: float32 squares overflow above 2^64."""
    total = 0.0
    for first in range(0, len(update), BLOCK):
        block = update[first : first + BLOCK].astype(np.float64)
        total += float(block @ block)
    return math.sqrt(total)
