"""The payload: golden bytes, one crafted payload for each fault, and nothing invalid gets through."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse, Update
from fedpress.compression.wire import payloads, positions, values
from fedpress.compression.wire.values import ValueFormat

GOLDEN = Path(__file__).parents[1] / "golden"

SUPPORTS: dict[str, tuple[int, list[int]]] = {
    "rice": (1000, [7, 8, 9, 300, 301, 555, 998]),
    "raw": (256, [255]),
    "bitmap": (1000, [p for p in range(1000) if p % 3]),
    "groups": (9000, [*range(0, 600, 2), *range(700, 9000, 83)]),
    "reference": (9000, [*range(0, 6000, 37), 6001, *range(6050, 9000, 74)]),
    "all": (1000, list(range(1000))),
    "empty": (1000, []),
}

REFERENCES = {"reference": np.arange(0, 9000, 37)}


def example(support: str) -> Sparse:
    n, places = SUPPORTS[support]
    chosen = np.array(places, np.int64)
    # Exact in float16, of different scales for int8, of both signs.
    magnitudes = (chosen * 37 % 64 + 1) / 32 * np.where(chosen < 500, 1.0, 8.0)
    return Sparse(chosen, (magnitudes * np.where(chosen % 2, -1, 1)).astype(np.float32), n)


DRAWN = (1000, 35, 2**64 - 5)  # n, k and the seed


def layout_of(n: int) -> Layout:
    return Layout((TensorSpec("weight", (n,), "float32"),))


LAYOUT = layout_of(1000)
REFERENCE = np.arange(0, 1000, 3)
SHARED = SideInfo(LAYOUT, shared_positions=REFERENCE)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("format", [values.by_name(name) for name in values.names()], ids=values.names())
def test_golden_bytes_of_version_1(support: str, format: ValueFormat) -> None:
    """The files stay as they are for ever: every later build must read them.

    The files of a new format are what `payloads.pack` gives here when it is added.
    """
    golden = (GOLDEN / f"1-{format.name}-{support}.bin").read_bytes()
    update = example(support)
    layout, reference = layout_of(update.size), REFERENCES.get(support)
    assert payloads.pack(update, layout, format, reference).payload == golden
    decoded = payloads.decode(golden, SideInfo(layout, shared_positions=reference))
    np.testing.assert_array_equal(decoded.sparse().positions, update.positions)
    np.testing.assert_array_equal(decoded.values, format.unpack(format.pack(update.values), update.count))
    assert isinstance(decoded, Dense) == (support == "all")
    assert payloads.inspect(golden)["positions"].startswith("rice" if support == "empty" else support)


@pytest.mark.parametrize("name", values.names())
def test_golden_bytes_of_seeded_payloads(name: str) -> None:
    n, k, seed = DRAWN
    update = np.arange(n, dtype=np.float32) / 8 - 40
    golden = (GOLDEN / f"1-{name}-seeded.bin").read_bytes()
    format, layout = values.by_name(name), layout_of(n)
    assert payloads.pack_drawn(update, k, seed, layout, format).payload == golden
    said = payloads.decode(golden, SideInfo(layout)).sparse()
    np.testing.assert_array_equal(said.positions, positions.drawn(seed, n, k))
    np.testing.assert_array_equal(said.values, format.unpack(format.pack(update[said.positions]), k))


def test_the_example_of_the_specification() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "wire.md").read_text()
    lines = page.split("## Example")[1].split("```")[1].strip().splitlines()
    payload = bytes.fromhex("".join(line[:24] for line in lines))
    update = Sparse(np.array([7, 300]), np.array([1, -1], np.float32), 1000)
    assert payloads.pack(update, LAYOUT, values.TERNARY).payload == payload


@st.composite
def updates(draw: st.DrawFn) -> tuple[Update, Layout]:
    n = draw(st.integers(0, 300))
    layout = layout_of(n)
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    chosen = sorted(draw(st.sets(st.integers(0, n - 1)))) if n else []
    filled = np.array(draw(st.lists(numbers, min_size=len(chosen), max_size=len(chosen))), np.float32)
    if draw(st.booleans()):
        return Dense(np.resize(filled, n) if len(filled) else np.zeros(n, np.float32)), layout
    return Sparse(np.array(chosen, np.int64), filled, n), layout


@given(updates(), st.sampled_from(values.names()))
def test_what_is_packed_is_decoded(made: tuple[Update, Layout], name: str) -> None:
    update, layout = made
    format = values.by_name(name)
    payload = payloads.pack(update, layout, format).payload
    for data in (payload, bytearray(payload), memoryview(payload)):
        decoded = payloads.decode(data, SideInfo(layout))
        assert decoded.size == layout.size and decoded.count == update.count
        np.testing.assert_array_equal(decoded.sparse().positions, update.sparse().positions)
        np.testing.assert_array_equal(decoded.values, format.unpack(format.pack(update.values), update.count))
    seen = payloads.inspect(payload)
    assert seen["bytes"] == seen["header_bytes"] + seen["position_bytes"] + seen["value_bytes"] == len(payload)
    assert (seen["size"], seen["count"], seen["values"]) == (layout.size, update.count, name)


def test_header_and_padding_take_at_most_24_bytes() -> None:
    layout = layout_of(5000)
    for k in [*range(1, 200), *range(200, 1000, 101), 999]:
        chosen = np.arange(k) * 5
        payload = payloads.pack(Sparse(chosen, np.ones(k, np.float32), 5000), layout, values.TERNARY).payload
        bits = min((b + 1) * k + sum(gap >> b for gap in [0] + [4] * (k - 1)) for b in range(8))
        assert len(payload) - (bits + 32 + k) / 8 <= 24  # 32 bits for the magnitude, k for the signs


# Faults. A payload is taken apart, one thing is changed, and the checksum is made to fit again.

FIELDS = struct.Struct("<2sBBBBIII")
NAMES = ("magic", "version", "value_tag", "index_tag", "flags", "n", "k", "fingerprint")


def crafted(body: bytes | None = None, **changes: object) -> bytes:
    """Return the example payload with fields and body changed and the checksum fitting."""
    payload = payloads.pack(example("rice"), LAYOUT, values.FLOAT32).payload
    fields = dict(zip(NAMES, FIELDS.unpack_from(payload), strict=True)) | changes
    head = FIELDS.pack(*fields.values())
    body = payload[payloads.HEADER_BYTES :] if body is None else body
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


BODY = payloads.pack(example("rice"), LAYOUT, values.FLOAT32).payload[payloads.HEADER_BYTES :]
RICE = BODY[: -4 * 7]
FLOATS = BODY[-4 * 7 :]
NAN = struct.pack("<f", float("nan"))
INFINITY = struct.pack("<f", float("inf"))
MINUS_INFINITY_16 = b"\x00\xfc"

STEPS = values.STEP.pack(example("rice").values)


def stepped(length: int, steps: bytes = STEPS) -> bytes:
    """Return the example payload with values in steps, said to take `length` bytes."""
    return crafted(RICE + steps + bytes([length]), value_tag=values.STEP.tag)


DYADIC = values.DYADIC.pack(example("rice").values)


def dyadic(numbers: bytes = DYADIC) -> bytes:
    """Return the example payload with dyadic values."""
    return crafted(RICE + numbers + bytes([len(numbers)]), value_tag=values.DYADIC.tag)


MARK = positions.fingerprint(REFERENCE, 1000)
THREE, FOUR = struct.pack("<3H", 0, 8, 333), struct.pack("<4H", 0, 5, 6, 665)  # ranks, raw


def referred(
    body: bytes = THREE + FOUR, *, mark: int = MARK, tags: tuple[int, int] = (1, 1), inside: int = 3, length: int = 6
) -> bytes:
    """Return the example payload with other positions, of which three are in the reference."""
    head = struct.pack("<IBBHH", mark, *tags, inside, length)
    return crafted(head + body + FLOATS, index_tag=positions.REFERENCE)


FAULTS: dict[str, tuple[Callable[[], bytes], type[errors.PayloadError]]] = {
    "nothing": (lambda: b"", errors.Truncated),
    "half a header": (lambda: crafted()[:21], errors.Truncated),
    "a header only": (lambda: crafted()[:22], errors.Truncated),
    "values cut off": (lambda: crafted()[:30], errors.Truncated),
    "another magic": (lambda: crafted(magic=b"PK"), errors.BadMagic),
    "version 0": (lambda: crafted(version=0), errors.UnsupportedVersion),
    "version 2": (lambda: crafted(version=2), errors.UnsupportedVersion),
    "value tag 0": (lambda: crafted(value_tag=0), errors.UnknownFormat),
    "value tag 255": (lambda: crafted(value_tag=255), errors.UnknownFormat),
    "index tag 31": (lambda: crafted(index_tag=31), errors.UnknownFormat),
    "index tag 64": (lambda: crafted(index_tag=64), errors.UnknownFormat),
    "a flag": (lambda: crafted(flags=1), errors.UnknownFormat),
    "k above n": (lambda: crafted(k=1001), errors.CountTooLarge),
    "k of 2^32 - 1": (lambda: crafted(k=2**32 - 1), errors.CountTooLarge),
    "another n": (lambda: crafted(n=999), errors.SizeMismatch),
    "n of 2^32 - 1": (lambda: crafted(n=2**32 - 1), errors.SizeMismatch),
    "another layout": (lambda: crafted(fingerprint=1), errors.LayoutMismatch),
    "all, but k < n": (lambda: crafted(index_tag=positions.ALL), errors.InvalidPositions),
    "all, too short": (lambda: crafted(index_tag=positions.ALL, k=1000), errors.Truncated),
    "a byte too many": (lambda: crafted(BODY + b"\0" * 200), errors.LengthMismatch),
    "raw of another length": (lambda: crafted(index_tag=positions.RAW), errors.Truncated),
    "raw and a byte": (lambda: crafted(b"\0" * 15 + FLOATS, index_tag=positions.RAW), errors.LengthMismatch),
    "bitmap and a byte": (lambda: crafted(b"\0" * 126 + FLOATS, index_tag=positions.BITMAP), errors.LengthMismatch),
    "Rice longer than the bitmap": (
        lambda: crafted(b"\xff" * 376 + b"\0" * 4 * 500, index_tag=positions.RICE + 5, k=500),
        errors.LengthMismatch,
    ),
    "one bit of the body": (lambda: crafted()[:-1] + bytes([crafted()[-1] ^ 1]), errors.ChecksumMismatch),
    "one bit of the checksum": (
        lambda: crafted()[:18] + bytes([crafted()[18] ^ 1]) + crafted()[19:],
        errors.ChecksumMismatch,
    ),
    "Rice, one gap open": (lambda: crafted(RICE[:-1] + b"\0" + FLOATS), errors.InvalidPositions),
    "Rice, one gap more": (lambda: crafted(RICE[:-1] + b"\xff" + FLOATS), errors.InvalidPositions),
    "Rice, a byte of zeros": (lambda: crafted(RICE + b"\0" + FLOATS), errors.LengthMismatch),
    "Rice, beyond n": (
        lambda: crafted(b"\xff" * 6 + b"\0\xfe" + FLOATS, index_tag=positions.RICE + 7),
        errors.InvalidPositions,
    ),
    "groups, one gap open": (
        lambda: crafted(b"\0\0\x3f" + FLOATS, index_tag=positions.GROUPS),
        errors.InvalidPositions,
    ),
    "groups, too short": (lambda: crafted(b"\0\0" + FLOATS, index_tag=positions.GROUPS), errors.Truncated),
    "groups longer than the bitmap": (
        lambda: crafted(b"\0\0" + b"\x7f" * 124 + FLOATS, index_tag=positions.GROUPS),
        errors.LengthMismatch,
    ),
    "no whole reference": (lambda: crafted(b"\0" * 9 + FLOATS, index_tag=positions.REFERENCE), errors.Truncated),
    "a reference longer than the bitmap": (
        lambda: crafted(b"\0" * 126 + FLOATS, index_tag=positions.REFERENCE),
        errors.LengthMismatch,
    ),
    "reference, another": (lambda: referred(mark=MARK + 1), errors.ReferenceMismatch),
    "reference within the reference": (lambda: referred(tags=(4, 1)), errors.UnknownFormat),
    "seeded within the reference": (lambda: referred(tags=(1, 5)), errors.UnknownFormat),
    "half a seed": (lambda: crafted(b"\0" * 4 + FLOATS, index_tag=positions.SEEDED), errors.Truncated),
    "a seed and a byte": (lambda: crafted(b"\0" * 9 + FLOATS, index_tag=positions.SEEDED), errors.LengthMismatch),
    "reference, unknown tag": (lambda: referred(tags=(1, 31)), errors.UnknownFormat),
    "reference, more than k in it": (lambda: referred(inside=8), errors.InvalidPositions),
    "reference, too many beside it": (
        lambda: crafted(
            struct.pack("<IBBHH", MARK, 1, 2, 0, 0) + bytes(84) + bytes(4 + 84),
            index_tag=positions.REFERENCE,
            value_tag=values.TERNARY.tag,
            k=667,
        ),
        errors.InvalidPositions,
    ),
    "reference, all of it, but three": (lambda: referred(FOUR, tags=(0, 1), length=0), errors.InvalidPositions),
    "reference, more than it has": (
        lambda: crafted(
            struct.pack("<IBBHH", MARK, 32, 32, 335, 0) + bytes(4 + 42),
            index_tag=positions.REFERENCE,
            value_tag=values.TERNARY.tag,
            k=335,
        ),
        errors.InvalidPositions,
    ),
    "reference, part beyond the end": (lambda: referred(length=15), errors.InvalidPositions),
    "reference, part too short": (lambda: referred(length=5), errors.InvalidPositions),
    "reference, rank beyond it": (
        lambda: referred(struct.pack("<3H", 0, 8, 334) + FOUR),
        errors.InvalidPositions,
    ),
    "reference, place beyond n": (
        lambda: referred(THREE + struct.pack("<4H", 0, 5, 6, 666)),
        errors.InvalidPositions,
    ),
    "raw, falling": (
        lambda: crafted(struct.pack("<7H", 1, 2, 3, 5, 4, 6, 7) + FLOATS, index_tag=positions.RAW),
        errors.InvalidPositions,
    ),
    "raw, twice": (
        lambda: crafted(struct.pack("<7H", 1, 2, 3, 3, 4, 6, 7) + FLOATS, index_tag=positions.RAW),
        errors.InvalidPositions,
    ),
    "raw, n": (
        lambda: crafted(struct.pack("<7H", 1, 2, 3, 4, 5, 6, 1000) + FLOATS, index_tag=positions.RAW),
        errors.InvalidPositions,
    ),
    "bitmap, eight of seven": (
        lambda: crafted(b"\xff" + b"\0" * 124 + FLOATS, index_tag=positions.BITMAP),
        errors.InvalidPositions,
    ),
    "step, no length": (lambda: crafted(RICE, value_tag=values.STEP.tag), errors.Truncated),
    "step, said to be longer than the payload": (lambda: stepped(255), errors.Truncated),
    "step, said to be shorter than it can be": (lambda: stepped(11), errors.InvalidValues),
    "step, a byte of the positions": (lambda: stepped(len(STEPS) + 1), errors.InvalidPositions),
    "step, a byte less": (lambda: stepped(len(STEPS) - 1), errors.LengthMismatch),
    "step, a byte over": (lambda: stepped(len(STEPS) + 1, STEPS + b"\0"), errors.InvalidValues),
    "step, no numbers": (lambda: stepped(len(STEPS), STEPS[:11] + b"\0" * (len(STEPS) - 11)), errors.InvalidValues),
    "step, base NaN": (lambda: stepped(len(STEPS), NAN + STEPS[4:]), errors.NonFiniteValues),
    "step, sum overflows": (
        lambda: stepped(len(STEPS), struct.pack("<ff", 3e38, 3e38) + STEPS[8:]),
        errors.NonFiniteValues,
    ),
    "dyadic, shorter than it can be": (lambda: dyadic(DYADIC[:6]), errors.InvalidValues),
    "dyadic, numbers missing": (lambda: dyadic(DYADIC[:7]), errors.InvalidValues),
    "dyadic, numbers cut off": (lambda: dyadic(DYADIC[:9]), errors.InvalidValues),
    "dyadic, a byte over": (lambda: dyadic(DYADIC + b"\0"), errors.InvalidValues),
    "dyadic, numbers behind equal magnitudes": (
        lambda: dyadic(struct.pack("<h", 16384) + DYADIC[2:]),
        errors.InvalidValues,
    ),
    "dyadic, 2^32 units": (lambda: dyadic(DYADIC[:2] + b"\xff" * 4 + DYADIC[6:]), errors.InvalidValues),
    "dyadic, beyond float32": (lambda: dyadic(struct.pack("<h", 127) + DYADIC[2:]), errors.NonFiniteValues),
    "dyadic, far beyond float32": (lambda: dyadic(struct.pack("<h", 8191) + DYADIC[2:]), errors.NonFiniteValues),
    "dyadic, equal, beyond float32": (
        lambda: dyadic(struct.pack("<hI", 16384 + 128, 1) + DYADIC[6:7]),
        errors.NonFiniteValues,
    ),
    "log4, levels beyond float32": (
        lambda: crafted(RICE + b"\xff\x1f" + b"\x77" * 4, value_tag=values.LOG4.tag),
        errors.NonFiniteValues,
    ),
    "log6, levels beyond float32": (
        lambda: crafted(RICE + b"\xff\x1f" + b"\xff" * 6, value_tag=values.LOG6.tag),
        errors.NonFiniteValues,
    ),
    "log8, levels beyond float32": (
        lambda: crafted(RICE + b"\xf9\x07" + b"\x7f" * 7, value_tag=values.LOG8.tag),
        errors.NonFiniteValues,
    ),
    "int4, product overflows": (
        lambda: crafted(RICE + struct.pack("<f", 3e38) + b"\x77" * 4, value_tag=values.INT4.tag),
        errors.NonFiniteValues,
    ),
    "sign, NaN": (lambda: crafted(RICE + NAN + b"\0", value_tag=values.SIGN.tag), errors.NonFiniteValues),
    "NaN": (lambda: crafted(RICE + NAN + FLOATS[4:]), errors.NonFiniteValues),
    "infinity": (lambda: crafted(RICE + FLOATS[:-4] + INFINITY), errors.NonFiniteValues),
    "float16 infinity": (
        lambda: crafted(RICE + MINUS_INFINITY_16 + b"\0" * 12, value_tag=values.FLOAT16.tag),
        errors.NonFiniteValues,
    ),
    "int8, scale NaN, all zero": (
        lambda: crafted(RICE + NAN + b"\0" * 7, value_tag=values.INT8.tag),
        errors.NonFiniteValues,
    ),
    "int8, product overflows": (
        lambda: crafted(RICE + struct.pack("<f", 3e38) + b"\x02" * 7, value_tag=values.INT8.tag),
        errors.NonFiniteValues,
    ),
    "ternary infinity": (
        lambda: crafted(RICE + INFINITY + b"\0", value_tag=values.TERNARY.tag),
        errors.NonFiniteValues,
    ),
}


def test_the_uncrafted_payload_is_valid() -> None:
    assert payloads.decode(crafted(), SHARED).count == 7
    assert crafted() == payloads.pack(example("rice"), LAYOUT, values.FLOAT32).payload
    assert dyadic() == payloads.pack(example("rice"), LAYOUT, values.DYADIC).payload
    # Ranks 0, 8 and 333 of every third place; 0, 5, 6 and 665 of the others.
    assert payloads.decode(referred(), SHARED).sparse().positions.tolist() == [0, 1, 8, 10, 24, 998, 999]


def test_a_decoder_without_the_reference_refuses() -> None:
    for reference in (None, np.arange(0), REFERENCE[:-1]):
        with pytest.raises(errors.ReferenceMismatch, match=f"against the shared positions {MARK:08x}"):
            payloads.decode(referred(), SideInfo(LAYOUT, shared_positions=reference))
    assert payloads.decode(crafted(), SideInfo(LAYOUT, shared_positions=REFERENCE[:-1])).count == 7  # needs none


@pytest.mark.parametrize("wrong", [[3, 3], [5, 4], [-1, 4], [4, 1000]])
def test_a_reference_that_is_no_support_is_refused_on_both_sides(wrong: list[int]) -> None:
    reference = np.array(wrong)
    with pytest.raises(errors.LayoutError, match="the shared positions must rise strictly"):
        payloads.pack(example("rice"), LAYOUT, values.FLOAT32, reference)
    with pytest.raises(errors.LayoutError, match="the shared positions must rise strictly"):
        payloads.decode(referred(), SideInfo(LAYOUT, shared_positions=reference))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_exception(fault: str) -> None:
    craft, expected = FAULTS[fault]
    with pytest.raises(errors.PayloadError) as raised:
        payloads.decode(craft(), SHARED)
    assert type(raised.value) is expected, raised.value


def test_every_exception_of_a_payload_is_among_the_faults() -> None:
    elsewhere = {errors.NegativeVariance, errors.ValuesTooLarge}  # of buffers; by the server, of an update
    assert {fault for _, fault in FAULTS.values()} == set(errors.PayloadError.__subclasses__()) - elsewhere


def test_inspect_finds_what_can_be_found_without_a_layout() -> None:
    needs_layout = (errors.SizeMismatch, errors.LayoutMismatch)
    unpacked = ("Rice, ", "groups, one", "raw, ", "bitmap, ", "NaN", "infinity", "float16 inf", "int8, ", "ternary")
    unpacked += (
        "reference",
        "seeded within",
        "step, a",
        "step, no numbers",
        "step, base",
        "step, sum",
        "dyadic, n",
        "dyadic, a",
        "dyadic, 2",
        "dyadic, b",
        "dyadic, f",
        "dyadic, e",
        "log",
        "int4, ",
        "sign, ",
    )
    for fault, (craft, expected) in FAULTS.items():
        if expected not in needs_layout and not fault.startswith(unpacked):
            with pytest.raises(expected):
                payloads.inspect(craft())


@pytest.mark.parametrize("name", ["int8", "step", "dyadic"])
def test_every_flipped_bit_and_every_shorter_payload_is_refused(name: str) -> None:
    payload = payloads.pack(example("rice"), LAYOUT, values.by_name(name)).payload
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.PayloadError):
            payloads.decode(bytes(changed), SHARED)
    for length in range(len(payload)):
        with pytest.raises(errors.PayloadError):
            payloads.decode(payload[:length], SHARED)


def checked(payload: bytes, shared: SideInfo) -> None:
    """Decode; what is not refused must be valid."""
    try:
        update = payloads.decode(payload, shared)
    except errors.PayloadError:
        return
    assert np.isfinite(update.values).all()
    chosen = update.sparse().positions
    assert len(chosen) == update.count <= update.size == shared.layout.size
    assert (np.diff(chosen) > 0).all()
    assert not len(chosen) or (chosen[0] >= 0 and chosen[-1] < update.size)


@settings(max_examples=500)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([values.by_name(name).tag for name in values.names()]),
    st.sampled_from([*range(positions.REFERENCE), positions.SEEDED, *range(32, 64)]),
    st.binary(max_size=80),
)
def test_any_body_is_refused_or_valid(n: int, k: int, value_tag: int, index_tag: int, body: bytes) -> None:
    layout = layout_of(n)
    fields = dict(value_tag=value_tag, index_tag=index_tag, n=n, k=k, fingerprint=layout.fingerprint)
    checked(crafted(body, **fields), SideInfo(layout))
    # And of the length that gets past the first checks:
    format = values.by_tag(value_tag)
    if format is not None and k <= n:
        for length in set(positions.length(index_tag, n, k)):
            whole = (body * 400)[: length + format.length(k)].ljust(length + format.length(k), b"\0")
            if format.varies:  # nowhere above 255 bytes here but for bitmaps of a few
                whole += bytes([min(255, format.length(k) + len(body) % 9)])
            checked(crafted(whole, **fields), SideInfo(layout))


@settings(max_examples=500)
@given(
    st.integers(0, 40),
    st.tuples(*[st.sampled_from([*range(6), 32, 33, 34])] * 2),
    st.integers(0, 20),
    st.integers(0, 9),
    st.binary(max_size=80),
)
def test_any_body_with_the_right_reference_is_refused_or_valid(
    k: int, tags: tuple[int, int], inside: int, length: int, body: bytes
) -> None:
    shared = SideInfo(layout_of(200), shared_positions=np.arange(0, 200, 11))
    head = struct.pack("<IBBBB", positions.fingerprint(np.arange(0, 200, 11), 200), *tags, inside, length)
    whole = (head + body)[:25] + bytes(4 + -(-k // 8)) * (k > 0)
    fields = dict(value_tag=values.TERNARY.tag, index_tag=positions.REFERENCE, n=200, k=k)
    checked(crafted(whole, **fields, fingerprint=shared.layout.fingerprint), shared)


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from(["start", "alone"]))
def test_any_bytes_are_refused_or_valid(data: bytes, where: str) -> None:
    checked(data if where == "alone" else crafted()[:22] + data, SHARED)


@pytest.mark.parametrize(
    "index_tag",
    [*range(positions.SEEDED + 1), positions.RICE, positions.RICE + 31],
)
@pytest.mark.parametrize("name", values.names())
def test_a_short_payload_cannot_ask_for_much_memory(index_tag: int, name: str) -> None:
    huge = layout_of(2**32 - 1)
    payload = crafted(
        bytes(1000),
        value_tag=values.by_name(name).tag,
        index_tag=index_tag,
        n=2**32 - 1,
        k=2**32 - 1,
        fingerprint=huge.fingerprint,
    )
    tracemalloc.start()
    try:
        with pytest.raises(errors.Truncated):
            payloads.decode(payload, SideInfo(huge))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (Dense(np.zeros(5, np.float32)), errors.LayoutError),
        (Sparse(np.array([1]), np.ones(1, np.float32), 999), errors.LayoutError),
        (Sparse(np.array([1]), np.array([np.nan], np.float32), 1000), errors.NonFiniteError),
        (Dense(np.full(1000, np.inf, np.float32)), errors.NonFiniteError),
        (Sparse(np.array([2, 1]), np.ones(2, np.float32), 1000), ValueError),
        (Sparse(np.array([1000]), np.ones(1, np.float32), 1000), ValueError),
    ],
)
def test_nothing_is_packed_that_a_decoder_would_refuse(update: Update, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        payloads.pack(update, LAYOUT, values.FLOAT32)


@given(st.lists(st.integers(-(2**23) + 1, 2**23 - 1), max_size=300), st.sampled_from([1, 100, 70_000]))
@settings(deadline=None, max_examples=40)
def test_integers_are_packed_as_their_floats_without_making_these(numbers: list[int], times: int) -> None:
    integers = np.resize(np.array(numbers, np.int32), len(numbers) * times if len(numbers) * times < 200_000 else 0)
    dense = Dense(integers.astype(np.float32))
    assert (
        payloads.pack_exact(integers, layout_of(len(integers)))
        == payloads.pack(dense, layout_of(len(integers)), values.DYADIC).payload
    )


def test_a_snapshot_is_made_and_read_in_little_more_memory_than_it_takes() -> None:
    integers = np.random.default_rng(0).normal(0, 1e5, 2_000_000).astype(np.int32)
    layout = layout_of(len(integers))
    tracemalloc.start()
    payload = payloads.pack_exact(integers, layout)
    making = tracemalloc.get_traced_memory()[1] - len(payload)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    decoded = payloads.decode(payload, SideInfo(layout))
    reading = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert making < 1.2 * len(payload) + 2**24  # a second copy of the payload, and blocks
    assert reading < integers.nbytes + 2**24
    np.testing.assert_array_equal(decoded.dense(), integers)
