"""signSGD: one bit an entry.

Bernstein, Wang, Azizzadenesheli and Anandkumar 2018, "signSGD: Compressed Optimization for Non-Convex Problems",
International Conference on Machine Learning (ICML), algorithm 1. The majority vote is
`server.model.optimizers.majority_vote`.
"""

import numpy as np

from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.tensors.layout import Layout, Vector, check_finite
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense
from fedpress.compression.wire import payloads
from fedpress.compression.wire.values import TERNARY


def signs() -> Encoder[None]:
    """Send +1 or -1 for each entry: its sign, and for an entry of zero one drawn from the seed.

    The magnitude is lost, so the server takes the sign of the sum and its own learning rate. (An entry of zero that
    always voted the same way would push weights that no gradient touches.)

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    >>> signs().encode(np.array([0.1, -7, 3], np.float32), None, side_info, 0).decoded.dense().tolist()
    [1.0, -1.0, 1.0]
    """

    def init(layout: Layout) -> None:
        return None

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        update = summed(update, addend, side_info.layout)
        check_finite(update)
        votes = np.sign(update)
        zeros = np.flatnonzero(votes == 0)
        votes[zeros] = np.random.default_rng(seed).integers(0, 2, len(zeros)) * 2 - 1
        return Encoded(*payloads.pack(Dense(votes), side_info.layout, TERNARY), None)

    return Encoder(init, encode)
