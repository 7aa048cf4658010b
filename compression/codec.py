"""One update as bytes and back, without state: the codec in two calls.

Error feedback, momentum and other methods that remember are `encoders`; what a payload holds is `wire.payloads`.
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

    What is not sent is lost; a sender that sends again keeps it, which `encoders.error_feedback` does.

    Args:
        update: An array of any shape, or arrays by name, taken as float32. Integers among named arrays, and running
            means and variances, are buffers and stay out.
        density: The part of the entries that is sent, 0 < density <= 1: max(1, round(density * n)) of n, or all that
            are not zero, if those are fewer.
        values: How they are written, a name in `wire.values.names()`: "float32" is exact, "step" right to 8 %.
        scope: "global" ranks all entries together; "layer" within each array.

    Raises:
        NonFiniteError: The update holds NaN or infinity.
        ValueError: The density is out of range, or there is no such format of values.

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
        payload: Bytes from anywhere: they are checked before anything is allocated.
        like: An array, or arrays by name, of the shapes and dtypes of what was encoded, such as the model's weights.

    Returns:
        A float32 array of the shape of `like`; or arrays by name in their shapes and dtypes, without buffers.

    Raises:
        PayloadError: The bytes are no payload, damaged, or of arrays of other names or shapes; a class for each fault
            (`errors`).
    """
    arrays, layout = _named(like)
    found = unflatten(payloads.decode(payload, SideInfo(layout)).dense(), layout)
    return found if isinstance(like, Mapping) else found[_ONLY]


_ONLY = "update"
"""The name of an array that came without one."""


def _named(update: ArrayLike | Arrays) -> tuple[Arrays, Layout]:
    arrays = update if isinstance(update, Mapping) else {_ONLY: np.asarray(update, np.float32)}
    return arrays, Layout.of_arrays(arrays)
