"""Decoding takes no more memory than docs/reference/wire.md says, whatever the payload claims."""

import struct
import tracemalloc

import numpy as np
import pytest
from tests.compression import aimed

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, powersgd
from fedpress.compression.quantizers import eden, qsgd, terngrad
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, positions, values

N = 600_000
FIXED = 64 * 1024
"""What the page grants beside twice the declared size."""


def flat(n: int, reference: Positions | None = None) -> SideInfo:
    return SideInfo(Layout((TensorSpec("weight", (n,), "float32"),)), shared_positions=reference)


def crafted(shared: SideInfo, value_tag: int, index_tag: int, k: int, body: bytes) -> bytes:
    n, fingerprint = shared.layout.size, shared.layout.fingerprint
    return aimed.repaired(aimed.HEAD.pack(b"FP", 1, value_tag, index_tag, 0, n, k, fingerprint) + bytes(4) + body)


def numbers_by_groups(payload: bytes, shared: SideInfo) -> int:
    """How many there are, as the page counts them."""
    value_tag, index_tag = payload[3:5]
    n, k = aimed.HEAD.unpack_from(payload)[5:7]
    body = payload[payloads.HEADER_BYTES :]
    if value_tag == 11 and k:  # none behind equal magnitudes
        width = -(-len(body).bit_length() // 8)
        start = len(body) - width - int.from_bytes(body[len(body) - width :], "little")
        if struct.unpack_from("<h", body, start)[0] < 8192:
            return k
    if value_tag == 8 or index_tag == positions.GROUPS:
        return k
    if index_tag == positions.REFERENCE and shared.shared_positions is not None:
        m, inside = len(shared.shared_positions), int.from_bytes(body[6 : 6 + -(-n.bit_length() // 8)], "little")
        counts = (min(inside, m - inside), k - inside)
        return sum(count for tag, count in zip(body[4:6], counts, strict=True) if tag == positions.GROUPS)
    return 0


def declared(payload: bytes, shared: SideInfo) -> int:
    """The declared size, as the page defines it."""
    fields = aimed.HEAD.unpack_from(payload)
    value_tag, index_tag, n, k = fields[2], fields[3], fields[5], fields[6]
    size = 8 * (len(payload) - payloads.HEADER_BYTES) + 8 * numbers_by_groups(payload, shared)
    if index_tag == positions.REFERENCE and shared.shared_positions is not None:
        size += 8 * len(shared.shared_positions)
    if value_tag == 67:  # the result is views of the body's numbers
        return size
    return size + (4 * n if index_tag == positions.ALL else 12 * k)


def within_bounds(payload: bytes, shared: SideInfo) -> bool:
    """Decode and check what it took; return whether the payload was accepted."""
    assert shared.layout.size == aimed.HEAD.unpack_from(payload)[5]  # and is in the cache
    tracemalloc.start()
    try:
        update = payloads.decode(payload, shared)
    except errors.PayloadError:
        update = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = declared(payload, shared)
    assert peak <= 2 * size + FIXED, f"{peak} bytes, declared {size}"
    return update is not None


@pytest.mark.parametrize("name", values.names())
@pytest.mark.parametrize("density", [0.002, 0.05, 0.4, 1.0])
def test_payloads_as_they_are_sent(name: str, density: float) -> None:
    random = np.random.default_rng(1)
    chosen = np.flatnonzero(random.random(N) < density)
    numbers = random.standard_normal(len(chosen)).astype(np.float32)
    shared, format = flat(N), values.by_name(name)
    update = Dense(numbers) if density == 1 else Sparse(chosen, numbers, N)
    assert within_bounds(payloads.pack(update, shared.layout, format).payload, shared)
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


@pytest.mark.parametrize("name", values.names())
@pytest.mark.parametrize("density", [0.002, 0.05, 0.4, 0.9])
def test_seeded_payloads_as_they_are_sent(name: str, density: float) -> None:
    numbers, shared = np.random.default_rng(1).standard_normal(N).astype(np.float32), flat(N)
    payload = payloads.pack_drawn(numbers, round(density * N), 7, shared.layout, values.by_name(name)).payload
    assert within_bounds(payload, shared)


@pytest.mark.parametrize("name", ["ternary", "step", "dyadic", "log8"])
@pytest.mark.parametrize("density", [0.002, 0.05, 0.4, 0.9])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8, 1.0])
def test_references_as_they_are_used(name: str, density: float, kept: float) -> None:
    """What is sent has `kept` of the reference and as many others."""
    random = np.random.default_rng(1)
    there = random.random(N) < density
    held = there.copy()
    there[held] = random.random(int(held.sum())) < kept
    there[~held] = random.random(N - int(held.sum())) < (1 - kept) * density
    chosen = np.flatnonzero(there)
    shared = flat(N, np.flatnonzero(held))
    numbers = random.choice([-0.5, 0.5], len(chosen)).astype(np.float32)
    packed = payloads.pack(
        Sparse(chosen, numbers, N), shared.layout, values.by_name(name), shared.shared_positions
    ).payload
    assert packed[4] == positions.REFERENCE or kept < 0.5
    assert within_bounds(packed, shared)


SCHEMES = [*(qsgd.scheme(bits) for bits in (2, 8)), *(eden.scheme(bits) for bits in (1, 4)), terngrad.scheme()]


@pytest.mark.parametrize("chosen", [*map(encoder.quantized, SCHEMES), powersgd.powersgd(1), powersgd.powersgd(40)])
def test_forms_as_they_are_sent(chosen: encoder.Encoder) -> None:
    shared = SideInfo(Layout((TensorSpec("weight", (N // 600, 600), "float32"),)))
    update = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    assert within_bounds(chosen.encode(update, chosen.init(shared.layout), shared, 0).payload, shared)


LONG = 300_000
ZEROS, ONES, END = bytes(LONG), b"\xff" * LONG, b"\x80"
FEW = bytes(4) + b"\0"  # one ternary value, or up to eight


def steps(numbers: bytes, k: int) -> bytes:
    """A body without positions: k values in steps, with these numbers."""
    return varying(bytes(8) + bytes(-(-k // 8)) + numbers)


def units(numbers: bytes, k: int, exponent: int = 0) -> bytes:
    """The same of dyadic values."""
    return varying(struct.pack("<hI", exponent, 1) + bytes(-(-k // 8)) + numbers)


def varying(numbers: bytes) -> bytes:
    return numbers + len(numbers).to_bytes(3, "little")


MANY = np.arange(4 * LONG)
EVEN = np.arange(0, 8 * LONG, 2)


def against(held: Positions, k: int, tags: tuple[int, int], inside: int, first: bytes, second: bytes = b"") -> bytes:
    """The payload of k ternary values with positions against these, of 8 * LONG places."""
    shared = flat(8 * LONG, held)
    counts = inside.to_bytes(3, "little") + len(first).to_bytes(3, "little")
    head = struct.pack("<IBB", positions.fingerprint(held, 8 * LONG), *tags) + counts
    return crafted(shared, 4, 4, k, head + first + second + (bytes(4 + -(-k // 8)) if k else b""))


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
    "dyadic, one long number": (crafted(flat(1), 11, 0, 1, units(b"\0\0" + ZEROS + END, 1)), True),
    "dyadic, many ones for one": (crafted(flat(1), 11, 0, 1, units(b"\0\0" + ONES, 1)), False),
    "dyadic, all ones": (crafted(flat(8 * LONG), 11, 0, 8 * LONG, units(b"\0\0" + ONES, 8 * LONG)), True),
    "dyadic, equal": (crafted(flat(8 * LONG), 11, 0, 8 * LONG, units(b"", 8 * LONG, 16384)), True),
    "dyadic, equal and seeded": (
        crafted(flat(8 * LONG), 11, 5, 8 * LONG - 1, bytes(8) + units(b"", 8 * LONG - 1, 16384)),
        True,
    ),
    "dyadic, equal and more": (crafted(flat(8), 11, 0, 8, units(ONES, 8, 16384)), False),
    "seeded, all": (crafted(flat(8 * LONG), 4, 5, 8 * LONG, bytes(8 + 4) + ZEROS), True),
    "seeded, few of many": (crafted(flat(8 * LONG), 4, 5, LONG, bytes(8 + 4 + -(-LONG // 8))), True),
    "reference, all and nothing else": (against(MANY, 4 * LONG, (32, 32), 4 * LONG, b""), True),
    "reference, nothing": (against(MANY, 0, (32, 32), 0, b""), True),
    "reference, all of an even one": (against(EVEN, len(EVEN), (32, 32), len(EVEN), b""), True),
    "reference, all and all others": (against(EVEN, 8 * LONG, (32, 0), len(EVEN), b""), True),
    "reference, others only": (against(EVEN, 4 * LONG, (32, 0), 0, b""), True),
    "reference, all of one of all": (against(np.arange(8 * LONG), 8 * LONG, (32, 32), 8 * LONG, b""), True),
    "reference, half of it in groups": (
        against(MANY, LONG, (3, 32), LONG, b"\0\0" + ONES[: LONG // 8]),
        True,
    ),
    "reference, the other half in groups": (
        against(EVEN, 6 * LONG, (32, 3), 4 * LONG, b"", b"\0\0" + ONES[: LONG // 4]),
        True,
    ),
    "reference, a bitmap of too many": (against(EVEN, 1, (2, 32), 1, ONES[: LONG // 2]), False),
    "reference, all but one": (against(EVEN, 4 * LONG - 1, (1, 32), 4 * LONG - 1, b"\5\0\0"), True),
}
SUPPORTS = {"all and all others": EVEN, "others only": EVEN, "even": EVEN, "one of all": np.arange(8 * LONG)}
SUPPORTS |= {"other half": EVEN, "too many": EVEN, "all but": EVEN}


def receiver(name: str) -> SideInfo:
    held = next((held for part, held in SUPPORTS.items() if part in name), MANY)
    return flat(aimed.HEAD.unpack_from(HOSTILE[name][0])[5], held if name.startswith("reference") else None)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads(name: str) -> None:
    payload, accepted = HOSTILE[name]
    assert within_bounds(payload, receiver(name)) is accepted


@pytest.mark.parametrize(("name", "most"), [("groups, all ones", 176), ("seeded, all", 208), ("dyadic, all ones", 176)])
def test_no_body_byte_asks_for_more_than_the_page_says(name: str, most: int) -> None:
    """The bounds in bytes of the body alone, at what comes closest: a bit or none for a position, one for a value."""
    payload, _ = HOSTILE[name]
    size = 2 * declared(payload, receiver(name))
    assert size <= most * (len(payload) - payloads.HEADER_BYTES) + FIXED
    assert size > 0.9 * most * (len(payload) - payloads.HEADER_BYTES) or name.startswith("dyadic")


def test_a_reference_asks_for_what_it_takes_itself_and_no_more() -> None:
    payload, _ = HOSTILE["reference, all and nothing else"]
    size = 2 * declared(payload, receiver("reference, all and nothing else"))
    assert size <= 208 * (len(payload) - payloads.HEADER_BYTES) + 16 * len(MANY) + FIXED
