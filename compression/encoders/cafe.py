"""CAFe, compressed aggregate feedback: the last global update predicts the next one, and clients keep no state.

Ortega, Huang, Li and Jafarkhani 2024, "Communication Compression for Distributed Learning without Control Variates",
arXiv:2412.04538; continued in 2025, "Communication Compression for Distributed Learning with Aggregate and
Server-Guided Feedback", arXiv:2512.22623.
"""

import numpy as np

from fedpress.compression import errors
from fedpress.compression.encoders.encoder import Encoded, Encoder, summed
from fedpress.compression.tensors import layout as layouts
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse, Update


def aggregate_feedback(inner: Encoder[None], scale: float = 1.0) -> Encoder[None]:
    """Encode update - scale * `SideInfo.predictor`; without a predictor, as in the first round, the update itself.

    The predictor must be what this client really holds, the same bits as on the server. A client that was away and
    holds none must be given none, and its reply be read without one.

    Law: what is decoded + scale * predictor == the update + the inner encoder's error on update - scale *
    predictor. A lossless inner encoder gives the update; one that contracts misses it by at most
    (1 - a)^(1/2) |update - scale * predictor|.

    Args:
        inner: An encoder without a state. A residual inside would lose the predictor's part of a refused payload, and
            one outside would take the prediction for something that is still to be sent.
        scale: Factor from the predictor's units to those of an update; the server must use the same.

    Raises:
        TypeError: From `init`: the inner encoder has a state.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.encoders import encoder, selection
    >>> from fedpress.compression.wire import values
    >>> layout = Layout((TensorSpec("weight", (3,), "float32"),))
    >>> side_info = SideInfo(layout, predictor=Dense(np.array([2, 2, 0], np.float32)))
    >>> feedback = aggregate_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> received = feedback.encode(np.array([2, 3, 0], np.float32), None, side_info, 0).decoded.dense()
    >>> side_info.predictor.add_to(received)
    >>> received.tolist()
    [2.0, 3.0, 0.0]
    """

    def init(layout: Layout) -> None:
        state = inner.init(layout)
        if state is not None:
            raise TypeError(
                f"aggregate_feedback needs an encoder without a state, this one keeps a {type(state).__name__}; "
                "the prediction stands in for error feedback, so leave that out"
            )

    def encode(
        update: Vector, state: None, side_info: SideInfo, seed: int, addend: Vector | None = None
    ) -> Encoded[None]:
        update = summed(update, addend, side_info.layout)
        if side_info.predictor is None:
            return inner.encode(update, state, side_info, seed)
        if side_info.predictor.size != len(update):
            raise errors.LayoutError(
                f"the predictor has {side_info.predictor.size} entries, expected {len(update)}; is it of a layout "
                "with an older mask?"
            )
        unpredicted = layouts.writable(update)
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            side_info.predictor.add_to(unpredicted, -scale)
        return inner.encode(unpredicted, state, side_info, seed)

    return Encoder(init, encode)


def predictor(delta: Update, base: int, version: int) -> Update | None:
    """Return the mean change of the held model over the versions that a delta merges; None for no prediction.

    Args:
        delta: The sum of the changes from version `base` to `version`.
        base: The version before; below 0, for a model sent from nothing, there is no prediction.
        version: The version after.

    >>> predictor(Sparse(np.array([1]), np.array([6], np.float32), 3), 4, 7).dense().tolist()
    [0.0, 2.0, 0.0]
    """
    if base < 0 or version <= base:
        return None
    mean = delta.values / np.float32(version - base)
    return Sparse(delta.positions, mean, delta.size) if isinstance(delta, Sparse) else Dense(mean)
