"""signSGD: one bit an entry.

Bernstein, Wang, Azizzadenesheli and Anandkumar 2018, "signSGD: Compressed Optimisation for Non-Convex Problems",
International Conference on Machine Learning (ICML), algorithm 1. The majority vote is `server.optimize.majority_vote`.
"""

import numpy as np

from fedpress.compression import errors, vector, wire
from fedpress.compression.encoder import Encoder
from fedpress.compression.shared import Shared
from fedpress.compression.update import Dense
from fedpress.compression.values import TERNARY
from fedpress.compression.vector import Layout, Vector


def signs() -> Encoder[None]:
    """Send +1 or -1 for each entry: its sign, and for an entry of zero one drawn from the seed.

    The magnitude is lost, so the server takes the sign of the sum and its own learning rate. (An entry of zero that
    always voted the same way would push weights that no gradient touches.)

    >>> shared = Shared(Layout((vector.TensorSpec("weight", (3,), "float32"),)))
    >>> payload, _ = signs().encode(np.array([0.1, -7, 3], np.float32), None, shared, 0)
    >>> wire.decode(payload, shared).dense().tolist()
    [1.0, -1.0, 1.0]
    """

    def init(layout: Layout) -> None:
        return None

    def encode(update: Vector, state: None, shared: Shared, seed: int) -> tuple[bytes, None]:
        vector.check(update, shared.layout)
        if not np.isfinite(update).all():
            raise errors.NonFiniteError("the update holds NaN or infinity; did training diverge?")
        votes = np.sign(update)
        zeros = np.flatnonzero(votes == 0)
        votes[zeros] = np.random.default_rng(seed).integers(0, 2, len(zeros)) * 2 - 1
        return wire.pack(Dense(votes), shared.layout, TERNARY), None

    return Encoder(init, encode)
