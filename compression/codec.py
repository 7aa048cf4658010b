"""The codec in two calls: one update as a payload and back, without state.

Error feedback, momentum and other methods with a state are in `encoders`; the format of a payload is in
`wire.payloads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedpress.compression.encoders import selection
from fedpress.compression.tensors.flatten import flatten, unflatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads
from fedpress.compression.wire import values as formats

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays, such as a model's."""


def encode(
    update: ArrayLike | Arrays,
    density: float = 0.01,
    *,
    values: str = "step",
    scope: Literal["global", "layer"] = "global",
) -> bytes:
    """Return the payload of the largest entries of an update.

    What is not sent is lost. A sender of several updates keeps it for the next one: `encoders.error_feedback`.

    Args:
        update: An array of any shape, or arrays by name, taken as float32. Integers among named arrays, and running
            means and variances, are buffers and stay out.
        density: Fraction of the entries that is sent, 0 < density <= 1: max(1, round(density * n)) of n, or all
            non-zeros if those are fewer.
        values: Format of the values, a name in `wire.values.names()`: "float32" is exact, "step" has a relative error
            of 8 %.
        scope: "global" ranks all entries together; "layer" within each array.

    Raises:
        NonFiniteError: The update holds NaN or infinity.
        ValueError: The density is out of range, or the format of values is unknown.

    >>> update = np.array([[0.0, -8.0], [0.5, 4.0]], np.float32)
    >>> payload = encode(update, density=0.5, values="float32")
    >>> len(payload), decode(payload, like=update).tolist()
    (31, [[0.0, -8.0], [0.0, 4.0]])
    """
    arrays, layout = _named(update)
    vector = flatten(arrays, layout)
    positions = selection.top_k(density, scope=scope)(vector, SideInfo(layout), 0)
    return payloads.pack(Sparse(positions, vector[positions], len(vector)), layout, formats.by_name(values)).payload


@overload
def decode(payload: bytes, like: Arrays) -> dict[str, NDArray[Any]]: ...
@overload
def decode(payload: bytes, like: ArrayLike) -> NDArray[Any]: ...
def decode(payload: bytes, like: ArrayLike | Arrays) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the update that a payload holds, zeros where nothing was sent.

    Args:
        payload: Bytes of any origin; they are checked before anything is allocated.
        like: An array, or arrays by name, of the shapes and dtypes of what was encoded, such as the model's weights.

    Returns:
        A float32 array of the shape of `like`; or arrays by name in their shapes and dtypes, without buffers.

    Raises:
        PayloadError: The bytes are no payload, are damaged, or belong to arrays of other names or shapes; a subclass
            for each fault (`errors`).
    """
    arrays, layout = _named(like)
    decoded = unflatten(payloads.decode(payload, SideInfo(layout)).dense(), layout)
    return decoded if isinstance(like, Mapping) else decoded[_ONLY]


_ONLY = "update"
"""The name of an array that came without one."""


def _named(update: ArrayLike | Arrays) -> tuple[Arrays, Layout]:
    arrays = update if isinstance(update, Mapping) else {_ONLY: np.asarray(update, np.float32)}
    return arrays, Layout.of_arrays(arrays)
