"""PowerSGD: each matrix of the update as a product of two thin ones, by one step of power iteration.

Vogels, Karimireddy and Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
Advances in Neural Information Processing Systems (NeurIPS), algorithm 1.
"""

from typing import NamedTuple

import numpy as np

from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.quantizers import lowrank
from fedpress.compression.tensors.layout import Layout, Vector, check_finite
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Factors, LowRank
from fedpress.compression.wire import payloads


class Factored(NamedTuple):
    """The state of `powersgd`: the right factors of the last payload, where the next power iteration begins."""

    right: Vector  # rank numbers for each column of each matrix, one after the other


def powersgd(rank: int) -> Encoder[Factored]:
    """Send each tensor of two or more dimensions as P Q^T, P of shape (rows, rank) and Q of (columns, rank).

    A tensor is a matrix of its first dimension by all others. Those that would not become smaller are sent as they
    are. In the paper the workers average P before they make it orthogonal; here each client sends a P of its own, and
    the server adds up the products.

    Law: what is missed contracts, |update - decoded| <= |update|; a matrix of that rank or less arrives exactly, but
    for rounding. The method is biased: `error_feedback` goes around it.

    Args:
        rank: 1 to 255.

    Raises:
        ValueError: The rank is out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (4, 5), "float32"),)))
    >>> update = np.outer([1, 2, 3, 4], [1, 0, 2, 0, 1]).astype(np.float32).ravel()
    >>> encoded = powersgd(rank=1).encode(update.copy(), powersgd(1).init(side_info.layout), side_info, 0)
    >>> bool(np.allclose(encoded.decoded.dense(), update)), len(encoded.payload)
    (True, 59)
    """
    if not 1 <= rank <= lowrank.MAX_RANK:
        raise ValueError(f"rank is {rank}, expected 1 to {lowrank.MAX_RANK}")

    def init(layout: Layout) -> Factored:
        return Factored(np.zeros(sum(part.columns * part.rank for part in lowrank.parts(layout, rank)), np.float32))

    def encode(
        update: Vector, state: Factored, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[Factored]:
        update = summed(update, addend, side_info.layout)
        check_finite(update)
        random = np.random.default_rng(seed)
        blocks: list[Vector | Factors] = []
        rights: list[Vector] = [np.empty(0, np.float32)]
        start = place = 0
        for part in lowrank.parts(side_info.layout, rank):
            tensor = update[start : start + part.rows * part.columns]
            start += len(tensor)
            if not part.rank:
                blocks.append(tensor.copy())  # the update is the caller's, or becomes a residual
                continue
            matrix = tensor.reshape(part.rows, part.columns).astype(np.float64)
            right = state.right[place : place + part.columns * rank].reshape(-1, rank).astype(np.float64)
            place += right.size
            if not right.any():  # the first time, or after an update of zeros
                right = random.standard_normal(right.shape)
            left, _ = np.linalg.qr(matrix @ right)
            # Entries of `left` are at most 1: the products stay finite.
            limit = lowrank.LARGEST / (2 * rank)
            factors = Factors(left.astype(np.float32), np.clip(matrix.T @ left, -limit, limit).astype(np.float32))
            blocks.append(factors)
            rights.append(factors.right.ravel())
        decoded = LowRank(tuple(blocks))
        payload = payloads.pack_whole(lowrank.FORM, rank, lowrank.pack(decoded), side_info.layout)
        return Encoded(payload, decoded, Factored(np.concatenate(rights)))

    return Encoder(init, encode)
