"""Decoding takes no more memory than docs/wire.md says, whatever the payload claims."""

import tracemalloc

import aimed
import numpy as np
import pytest

from fedpress.compression import eden, encoder, errors, positions, powersgd, qsgd, terngrad, values, wire
from fedpress.compression.shared import Shared
from fedpress.compression.update import Dense, Sparse
from fedpress.compression.vector import Layout, TensorSpec

N = 600_000
FIXED = 64 * 1024
"""What the page grants beside twice the declared size."""


def flat(n: int) -> Shared:
    return Shared(Layout((TensorSpec("weight", (n,), "float32"),)))


def crafted(shared: Shared, value_tag: int, index_tag: int, k: int, body: bytes) -> bytes:
    n, fingerprint = shared.layout.size, shared.layout.fingerprint
    return aimed.repaired(aimed.HEAD.pack(b"FP", 1, value_tag, index_tag, 0, n, k, fingerprint) + bytes(4) + body)


def declared(payload: bytes) -> int:
    """The declared size, as the page defines it."""
    fields = aimed.HEAD.unpack_from(payload)
    value_tag, index_tag, n, k = fields[2], fields[3], fields[5], fields[6]
    size = 8 * (len(payload) - wire.HEADER_BYTES)
    if value_tag == 8 or index_tag == positions.GROUPS:
        size += 8 * k
    if value_tag == 67:  # the result is views of the body's numbers
        return size
    return size + (4 * n if index_tag == positions.ALL else 12 * k)


def within_bounds(payload: bytes, shared: Shared) -> bool:
    """Decode and check what it took; return whether the payload was accepted."""
    assert shared.layout.size == aimed.HEAD.unpack_from(payload)[5]  # and is in the cache
    tracemalloc.start()
    try:
        update = wire.decode(payload, shared)
    except errors.PayloadError:
        update = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 2 * declared(payload) + FIXED, f"{peak} bytes, declared {declared(payload)}"
    return update is not None


@pytest.mark.parametrize("name", values.names())
@pytest.mark.parametrize("density", [0.002, 0.05, 0.4, 1.0])
def test_payloads_as_they_are_sent(name: str, density: float) -> None:
    random = np.random.default_rng(1)
    chosen = np.flatnonzero(random.random(N) < density)
    numbers = random.standard_normal(len(chosen)).astype(np.float32)
    shared, format = flat(N), values.by_name(name)
    update = Dense(numbers) if density == 1 else Sparse(chosen, numbers, N)
    assert within_bounds(wire.pack(update, shared.layout, format), shared)
    if density == 0.05:  # the encoder takes groups; Rice and raw as well
        gaps = np.diff(chosen, prepend=-1) - 1
        low = gaps[:, None] >> np.arange(4) & 1
        high = np.zeros(int((gaps >> 4).sum()) + len(gaps), np.uint8)
        high[np.cumsum((gaps >> 4) + 1) - 1] = 1
        rice = np.packbits(np.append(low.astype(np.uint8), high), bitorder="little").tobytes()
        raw = chosen.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        tail = format.pack(numbers)
        for tag, places in ((positions.RICE + 4, rice), (positions.RAW, raw)):
            body = places + tail
            if format.varies:
                body += len(tail).to_bytes(2 if len(body) + 2 < 2**16 else 3, "little")
            assert within_bounds(crafted(shared, format.tag, tag, len(chosen), body), shared)


SCHEMES = [*(qsgd.scheme(bits) for bits in (2, 8)), *(eden.scheme(bits) for bits in (1, 4)), terngrad.scheme()]


@pytest.mark.parametrize("chosen", [*map(encoder.quantised, SCHEMES), powersgd.powersgd(1), powersgd.powersgd(40)])
def test_forms_as_they_are_sent(chosen: encoder.Encoder) -> None:
    shared = Shared(Layout((TensorSpec("weight", (N // 600, 600), "float32"),)))
    update = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    assert within_bounds(chosen.encode(update, chosen.init(shared.layout), shared, 0)[0], shared)


LONG = 300_000
ZEROS, ONES, END = bytes(LONG), b"\xff" * LONG, b"\x80"
FEW = bytes(4) + b"\0"  # one ternary value, or up to eight


def steps(numbers: bytes, k: int) -> bytes:
    """A body without positions: k values in steps, with these numbers."""
    body = bytes(8) + bytes(-(-k // 8)) + numbers
    return body + len(body).to_bytes(3, "little")


HOSTILE = {
    "Rice, one long gap": (crafted(flat(8 * LONG), 4, 32, 1, ZEROS[1:] + END + FEW), True),
    "Rice, many ones for one": (crafted(flat(8 * LONG), 4, 32, 1, ONES + FEW), False),
    "Rice, all ones": (crafted(flat(8 * LONG), 4, 32, 8 * LONG, ONES + bytes(4) + ZEROS), True),
    "Rice, low bits only": (crafted(flat(8 * LONG), 4, 63, LONG // 4, ONES + bytes(4 + LONG // 32)), False),
    "bitmap, ones for none": (crafted(flat(8 * LONG), 1, 2, 0, ONES), False),
    "bitmap, all ones": (crafted(flat(8 * LONG), 4, 2, 8 * LONG - 1, ONES[1:] + b"\x7f" + bytes(4) + ZEROS), True),
    "groups, one long gap": (crafted(flat(8 * LONG), 4, 3, 1, ZEROS[1:] + END + FEW), True),
    "groups, many ones for one": (crafted(flat(8 * LONG), 4, 3, 1, b"\0\0" + ONES[2:] + FEW), False),
    "groups, all ones": (crafted(flat(8 * LONG), 4, 3, 8 * LONG, b"\0\0" + ONES + bytes(4) + ZEROS), True),
    "groups, the greatest code": (crafted(flat(8 * LONG), 4, 3, LONG // 8, b"\x3d\0" + ONES[2:] + bytes(9999)), False),
    "groups, wide codes": (crafted(flat(8 * LONG), 4, 3, LONG, b"\0\6" + ONES[2:] + bytes(4 + LONG // 8)), False),
    "step, one long number": (crafted(flat(1), 8, 0, 1, steps(b"\0\0" + ZEROS + END, 1)), True),
    "step, many ones for one": (crafted(flat(1), 8, 0, 1, steps(b"\0\0" + ONES, 1)), False),
    "step, all ones": (crafted(flat(8 * LONG), 8, 0, 8 * LONG, steps(b"\0\0" + ONES, 8 * LONG)), True),
    "step, codes of threes": (
        crafted(flat(4 * LONG), 8, 0, 4 * LONG, steps(b"\2\0" + ZEROS[: LONG // 2] + ONES[: LONG // 2], 4 * LONG)),
        True,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads(name: str) -> None:
    payload, accepted = HOSTILE[name]
    assert within_bounds(payload, flat(aimed.HEAD.unpack_from(payload)[5])) is accepted


def test_no_body_byte_asks_for_more_than_the_page_says() -> None:
    """The bound in bytes of the body alone, at what comes closest to it: one bit for a position and one for a value."""
    payload, _ = HOSTILE["groups, all ones"]
    assert 80 * (len(payload) - 22) < 2 * declared(payload) <= 176 * (len(payload) - 22)
