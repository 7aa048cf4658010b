"""What every decode holds, whatever bytes it was given: for the tests and for the fuzzer (tests/fuzz).

Each function takes a payload from anywhere and what the receiver knows; it returns quietly or fails with what is wrong.
"""

from collections.abc import Sequence

import numpy as np
from tests.compression import reference_decoder as reference

from fedpress.compression import errors
from fedpress.compression.quantizers import eden, lowrank
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Factors, LowRank, Sparse, Update
from fedpress.compression.wire import payloads, values


def held(payload: bytes, shared: SideInfo) -> str:
    """Check all of them; return the name of the fault, or "" if the payload is valid."""
    update = decoded(payload, shared)
    if update is not None:
        said_again(update, shared)
    return agreed(payload, shared)


def decoded(payload: bytes, shared: SideInfo) -> Update | None:
    """Decode; nothing but a `PayloadError` is raised (and None returned), and what is accepted is valid."""
    try:
        update = payloads.decode(payload, shared)
    except errors.PayloadError:
        return None
    _check(update, shared.layout)
    return update


def said_again(update: Update, shared: SideInfo) -> None:
    """Pack what was decoded as float32 and decode it: the same comes out."""
    if isinstance(update, LowRank):
        update = Dense(update.values)
    again = payloads.decode(
        payloads.pack(update, shared.layout, values.FLOAT32, shared.shared_positions).payload, shared
    )
    assert again.values.tobytes() == update.values.tobytes(), "other values after a float32 payload"
    assert np.array_equal(again.sparse().positions, update.sparse().positions), "other positions after a payload"


def _check(update: Update, layout: Layout) -> None:
    numbers = update.values
    assert numbers.dtype == np.float32 and numbers.shape == (update.count,), "values of another type or shape"
    assert np.isfinite(numbers).all(), "values that are NaN or infinite"
    assert update.size == layout.size, "an update of another size"
    if isinstance(update, Sparse):
        places = update.positions
        assert places.dtype == np.int64 and places.shape == (update.count,), "positions of another type or shape"
        assert not len(places) or (places[0] >= 0 and places[-1] < update.size), "positions outside the vector"
        assert (places[1:] > places[:-1]).all(), "positions that do not rise"
    elif isinstance(update, Dense):
        assert update.count == update.size, "a dense update that is not whole"


def agreed(payload: bytes, shared: SideInfo) -> str:
    """Decode with fedpress and with the reference; both say the same, or refuse for the same fault.

    Returns:
        The name of the fault, or "" if the payload is valid.
    """
    fault = ""
    try:
        support = None if shared.shared_positions is None else shared.shared_positions.tolist()
        expected = reference.decode(payload, tensors(shared.layout.parameters), support)
    except reference.Refused as refused:
        fault = str(refused)
    try:
        update = payloads.decode(payload, shared)
    except errors.PayloadError as error:
        assert type(error).__name__ == fault, f"{error!r}; the reference says: {fault or 'valid'}"
        return fault
    assert not fault, f"decoded, but the reference says: {fault}"
    assert update.sparse().positions.tolist() == expected.positions
    said = np.array(expected.values, np.float32)
    if payload[3] in (eden.FORM.tag, lowrank.FORM.tag):
        np.testing.assert_allclose(update.values, said, rtol=1e-6, atol=_rounding(update, payload))
    else:
        assert update.values.tobytes() == said.tobytes(), "other values than the reference's"
    return ""


def _rounding(update: Update, payload: bytes) -> float:
    """Return how far two decoders may be apart in the forms whose sums are not laid down to the last bit."""
    if isinstance(update, LowRank):
        factors = [block for block in update.blocks if isinstance(block, Factors)]
        peaks = [np.abs(left).max(axis=0).astype(float) @ np.abs(right).max(axis=0) for left, right in factors]
        return 2e-5 * max(peaks, default=0.0)
    scales = np.frombuffer(payload, "<f4", -(-update.size // eden.ROTATED), payloads.HEADER_BYTES + 1 + 8)
    return 1e-9 * float(np.abs(scales).max(initial=0))


def tensors(specs: Sequence[TensorSpec]) -> list[reference.Tensor]:
    """Return what the reference calls a layout."""
    return [reference.Tensor(*spec) for spec in specs]
