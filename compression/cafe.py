"""CAFe, compressed aggregate feedback: the last global update predicts the next one, and clients keep no state.

Ortega, Huang, Li and Jafarkhani 2024, "Communication Compression for Distributed Learning without Control Variates",
arXiv:2412.04538; continued in 2025, "Communication Compression for Distributed Learning with Aggregate and
Server-Guided Feedback", arXiv:2512.22623.
"""

import numpy as np

from fedpress.compression import errors, vector
from fedpress.compression.encoder import Encoder
from fedpress.compression.shared import Shared
from fedpress.compression.vector import Layout, Vector


def aggregate_feedback(inner: Encoder[None]) -> Encoder[None]:
    """Encode update - `Shared.predictor`; without a predictor, as in the first round, the update itself.

    The predictor must be what this client really holds, the same bits as on the server. A client that was away and
    does not hold the last global update must be given none, and its reply be read without one.

    Law: the mean of what the payloads say + predictor (`restored`) == the mean of the updates + the mean of the inner
    encoder's errors on update - predictor. A lossless inner encoder gives the mean of the updates; one that contracts
    misses each update by at most (1 - a)^(1/2) |update - predictor|.

    Args:
        inner: An encoder without a state. A residual inside would lose the predictor's part of a refused payload, and
            one outside would take the prediction for something that is still to be sent.

    Raises:
        TypeError: From `init`: the inner encoder has a state.

    >>> from fedpress.compression import encoder, selection, values
    >>> layout = Layout((vector.TensorSpec("weight", (3,), "float32"),))
    >>> shared = Shared(layout, predictor=np.array([2, 2, 0], np.float32))
    >>> feedback = aggregate_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    >>> payload, _ = feedback.encode(np.array([2, 3, 0], np.float32), None, shared, 0)
    >>> said = encoder.decode(payload, shared).dense()
    >>> said.tolist(), restored(said, shared).tolist()
    ([0.0, 1.0, 0.0], [2.0, 3.0, 0.0])
    """

    def init(layout: Layout) -> None:
        state = inner.init(layout)
        if state is not None:
            raise TypeError(
                f"aggregate_feedback needs an encoder without a state, this one keeps a {type(state).__name__}; "
                "the prediction stands in for error feedback, so leave that out"
            )

    def encode(update: Vector, state: None, shared: Shared, seed: int) -> tuple[bytes, None]:
        vector.check(update, shared.layout)
        if shared.predictor is None:
            return inner.encode(update, state, shared, seed)
        _check(shared)
        with np.errstate(over="ignore", invalid="ignore"):  # the inner encoder refuses what is not finite
            asked = np.subtract(update, shared.predictor, out=update if update.flags.writeable else None)
        return inner.encode(asked, state, shared, seed)

    return Encoder(init, encode)


def restored(mean: Vector, shared: Shared) -> Vector:
    """Return the mean update that the mean of this round's decoded payloads stands for: the predictor is added.

    Args:
        mean: The mean of what payloads say, float32, shape (n,).
        shared: With the predictor that the clients had, or None.

    Raises:
        LayoutError: The predictor does not fit the layout.
    """
    if shared.predictor is None:
        return mean
    _check(shared)
    return mean + shared.predictor


def _check(shared: Shared) -> None:
    given = shared.predictor
    if given is not None and (given.shape != (shared.layout.size,) or given.dtype != np.float32):
        raise errors.LayoutError(
            f"the predictor is {given.dtype} of shape {given.shape}, expected float32 of shape "
            f"({shared.layout.size},); is it of an older epoch, with another layout?"
        )
