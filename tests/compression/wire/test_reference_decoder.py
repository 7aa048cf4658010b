"""fedpress and a decoder that was written from docs/reference/wire.md alone read the same, and refuse the same."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression import aimed, laws
from tests.compression import reference_decoder as reference

from fedpress.compression import errors
from fedpress.compression.coding import golomb
from fedpress.compression.encoders import encoder, powersgd
from fedpress.compression.quantizers import eden, qsgd, terngrad
from fedpress.compression.tensors import buffer_codec, layout
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads, positions, values

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = [values.by_name(name) for name in values.names()]


def flat(n: int) -> SideInfo:
    return SideInfo(Layout((TensorSpec("weight", (n,), "float32"),)))


TENSORS = SideInfo(
    Layout(
        (
            TensorSpec("0.weight", (6, 5), "float32"),
            TensorSpec("0.bias", (7,), "bfloat16"),
            TensorSpec("é", (), "float64"),
            TensorSpec("empty", (3, 0, 2), "float16"),
            TensorSpec("2.weight", (4, 2, 5), "float32"),
        )
    )
)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("1-*.bin")), ids=lambda path: path.stem)
def test_golden_files(golden: Path) -> None:
    payload = golden.read_bytes()
    if "form" in golden.stem:
        known = SideInfo(Layout((TensorSpec("0", (6, 5), "float32"), TensorSpec("1", (7,), "float32"))))
    else:
        known = flat(struct.unpack_from("<I", payload, 6)[0])
    if "reference" in golden.stem:
        assert laws.agreed(payload, known) == "ReferenceMismatch"
        known = known._replace(shared_positions=np.arange(0, 9000, 37))
    assert laws.agreed(payload, known) == ""
    support = None if known.shared_positions is None else known.shared_positions.tolist()
    said = reference.decode(payload, laws.tensors(known.layout.parameters), support)
    assert len(said.positions) == len(said.values) == struct.unpack_from("<I", payload, 10)[0]


def test_it_imports_nothing_but_the_standard_library() -> None:
    source = Path(reference.__file__).read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported == {"collections", "hashlib", "math", "struct", "typing", "zlib"}


def test_it_knows_every_tag() -> None:
    assert set(reference.LEAST) == set(reference.READ) == {format.tag for format in FORMATS}
    assert set(reference.FORMS) == set(payloads.FORMS)


# Payloads in every form, also in those that the encoder would not choose.


def payload_of(value_tag: int, index_tag: int, n: int, k: int, body: bytes, layout: Layout) -> bytes:
    head = aimed.HEAD.pack(b"FP", 1, value_tag, index_tag, 0, n, k, layout.fingerprint)
    return aimed.repaired(head + bytes(4) + body)


def bits(flags: list[int]) -> bytes:
    return bytes(sum(bit << j for j, bit in enumerate(flags[at : at + 8])) for at in range(0, len(flags), 8))


def written(tag: int, chosen: list[int], n: int, support: list[int] | None = None, seed: int = 0) -> bytes:
    """The positions in this form, written one by one: no code of fedpress's but that of the groups.

    Args:
        tag: The form; of the parts of positions against a reference, the seed says which.
        chosen: The positions.
        n: Size of the vector.
        support: For positions against a reference.
        seed: For drawn positions.
    """
    if tag == positions.SEEDED:
        return seed.to_bytes(8, "little")
    if tag == positions.REFERENCE:
        return written_against(support or [], chosen, n, seed)
    gaps = [p - q - 1 for q, p in zip([-1, *chosen], chosen, strict=False)]
    if tag == positions.ALL or (not chosen and tag != positions.BITMAP):
        return b""
    if tag == positions.RAW:
        width = -(-(n - 1).bit_length() // 8)
        return b"".join(p.to_bytes(width, "little") for p in chosen)
    if tag == positions.BITMAP:
        there = set(chosen)
        return bits([int(p in there) for p in range(n)])
    if tag == positions.GROUPS:
        return golomb.pack(golomb.plan(np.array(gaps, np.uint32)))
    b = tag - positions.RICE
    low = [gap >> j & 1 for gap in gaps for j in range(b)]
    return bits(low + [bit for gap in gaps for bit in [0] * (gap >> b) + [1]])


def written_against(support: list[int], chosen: list[int], n: int, seed: int) -> bytes:
    there, known = set(chosen), set(support)
    places = [p for p in range(n) if p not in known]
    ranks, others = [r for r, p in enumerate(support) if p in there], [r for r, p in enumerate(places) if p in there]
    shared = len(ranks)
    if 2 * shared > len(support):
        ranks = [r for r, p in enumerate(support) if p not in there]
    tags, parts = [], []
    for listed, of in ((ranks, len(support)), (others, len(places))):
        forms = [(tag, written(tag, listed, of)) for tag in tags_for(listed, of)]
        forms = [(tag, data) for tag, data in forms if len(data) <= positions.length(tag, of, len(listed))[1]]
        tag, part = forms[seed % len(forms)]
        tags.append(tag)
        parts.append(part)
    width = next(width for width in range(5) if n < 256**width)
    mark = zlib.crc32(b"".join(p.to_bytes(4, "little") for p in [len(support), *support]))
    counts = shared.to_bytes(width, "little") + len(parts[0]).to_bytes(width, "little")
    return mark.to_bytes(4, "little") + bytes(tags) + counts + b"".join(parts)


def packed(
    update: Sparse,
    tag: int,
    format: values.ValueFormat,
    layout: Layout,
    support: list[int] | None = None,
    seed: int = 0,
) -> bytes:
    """The payload of the update with its positions in this form."""
    numbers = format.pack(update.values)
    body = written(tag, update.positions.tolist(), update.size, support, seed) + numbers
    if format.varies and update.count:
        width = next(width for width in range(1, 5) if len(body) + width < 256**width)
        body += len(numbers).to_bytes(width, "little")
    return payload_of(format.tag, tag, update.size, update.count, body, layout)


@st.composite
def supports(draw: st.DrawFn) -> tuple[list[int], int]:
    """Positions of several kinds, and n: none, all, clusters, single ones far away, and more than a group of 256."""
    kind = draw(st.sampled_from(["few", "none", "all", "dense", "clusters", "far"]))
    if kind == "few":
        n = draw(st.integers(1, 300))
        return sorted(draw(st.sets(st.integers(0, n - 1), max_size=40))), n
    if kind == "none":
        return [], draw(st.sampled_from([0, 1, 7, 8, 9, 255, 256, 257, 70_000]))
    if kind == "all":
        n = draw(st.sampled_from([0, 1, 2, 8, 9, 256, 257, 600]))
        return list(range(n)), n
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "dense":
        n = draw(st.integers(500, 1500))
        return np.flatnonzero(random.random(n) < draw(st.sampled_from([0.3, 0.6, 0.95]))).tolist(), n
    if kind == "clusters":
        gaps = np.concatenate([random.geometric(p, 256) for p in random.choice([0.9, 0.3, 0.05, 0.01], 3)])
        chosen = np.cumsum(gaps) - 1
        cut = draw(st.integers(250, len(chosen)))
        return chosen[:cut].tolist(), int(chosen[cut - 1]) + 1 + draw(st.integers(0, 9))
    n = draw(st.sampled_from([65_536, 65_537, 300_000]))
    return sorted({*draw(st.sets(st.integers(0, n - 1), max_size=6)), 0, n - 1}), n


def filled(count: int, seed: int, exponent: int) -> layout.Vector:
    random = np.random.default_rng(seed)
    with np.errstate(over="ignore", under="ignore"):
        numbers = (random.standard_normal(count) * 10.0 ** (exponent * random.random(count))).astype(np.float32)
    numbers[random.random(count) < 0.05] = 0
    return np.clip(numbers, -3.4e38, 3.4e38)


def tags_for(chosen: list[int], n: int) -> list[int]:
    """Every form that may hold these positions: of Rice's parameters, those that are not longer than the bitmap."""
    found = [positions.RAW, positions.BITMAP, positions.GROUPS] + [positions.ALL] * (len(chosen) == n)
    for b in (0, 1, 2, 5, 9, 17, 31):
        bits = sum((p - q - 1 >> b) + b + 1 for q, p in zip([-1, *chosen], chosen, strict=False))
        if -(-bits // 8) <= -(-n // 8):
            found.append(positions.RICE + b)
    return found


def numbers(count: int, seed: int, exponent: int) -> layout.Vector:
    """Values of many scales, some of them zero, the largest near the end of float32."""
    random = np.random.default_rng(seed)
    made = random.standard_normal(count) * 10.0 ** (exponent * random.random(count))
    made[random.random(count) < 0.05] = 0
    return np.clip(made, -3.4e38, 3.4e38).astype(np.float32)


EXPONENTS = st.sampled_from([-40, -3, 0, 3, 38])
SEEDS = st.integers(0, 2**32)


@settings(max_examples=60)
@given(supports(), SEEDS, EXPONENTS)
def test_random_payloads_in_every_format_and_form(support: tuple[list[int], int], seed: int, exponent: int) -> None:
    chosen, n = support
    shared, tags = flat(n), tags_for(*support)
    update = Sparse(np.array(chosen, np.int64), numbers(len(chosen), seed, exponent), n)
    for index, format in enumerate(FORMATS):
        tag = tags[(index + seed) % len(tags)]
        payload = packed(update, tag, format, shared.layout)
        longer = tag == positions.GROUPS and len(written(tag, chosen, n)) > positions.length(tag, n, len(chosen))[1]
        assert laws.agreed(payload, shared) == ("LengthMismatch" if longer else "")


@settings(max_examples=60)
@given(supports(), st.sampled_from(["subset", "most", "other", "same", "none", "all"]), SEEDS, EXPONENTS)
def test_random_payloads_against_a_reference(
    support: tuple[list[int], int], kind: str, seed: int, exponent: int
) -> None:
    chosen, n = support
    random = np.random.default_rng(seed)
    there = np.zeros(n, np.bool_)
    there[chosen] = kind not in ("other", "none")
    if kind in ("subset", "most"):
        there[random.random(n) < {"subset": 0.01, "most": 0.3}[kind]] ^= True
    elif kind == "other":
        there[random.random(n) < 0.05] = True
    elif kind == "all":
        there[:] = True
    held = np.flatnonzero(there)
    right, format = flat(n)._replace(shared_positions=held), FORMATS[seed % len(FORMATS)]
    update = Sparse(np.array(chosen, np.int64), numbers(len(chosen), seed, exponent), n)
    payload = packed(update, positions.REFERENCE, format, right.layout, held.tolist(), seed)
    length = len(written(positions.REFERENCE, chosen, n, held.tolist(), seed))
    fault = "LengthMismatch" if length > positions.length(positions.REFERENCE, n, len(chosen))[1] else ""
    assert laws.agreed(payload, right) == fault
    ours = payloads.pack(update, right.layout, format, held).payload
    assert laws.agreed(ours, right) == ""
    for wrong in (None, held[1:], np.append(held, n) - 1):
        if wrong is None or (len(held) and held[0] > 0):
            found = laws.agreed(payload, right._replace(shared_positions=wrong))
            assert found == (fault or "ReferenceMismatch")


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 9, 255, 1000, 65_537]),
    st.floats(0, 1),
    st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63, 2**64 - 1])),
    EXPONENTS,
)
def test_random_seeded_payloads(n: int, density: float, seed: int, exponent: int) -> None:
    k = round(n * density) if n < 2000 else round(600 * density)
    shared, format = flat(n), FORMATS[seed % len(FORMATS)]
    update = np.zeros(n, np.float32)
    update[:] = numbers(n, seed, exponent)
    assert laws.agreed(payloads.pack_drawn(update, k, seed, shared.layout, format).payload, shared) == ""


def test_an_example_of_each_new_way_to_write_positions() -> None:
    """The examples of the page."""
    support = [10, 20, 30, 40]
    data = bytes.fromhex("b3b822b6 2025 0301 02 55")
    assert reference.read_reference(data, 100, 4, support) == [10, 30, 40, 57]
    assert reference.drawn(7, 100, 5) == [12, 29, 51, 68, 99]
    assert [f"{reference.mixed(1234567, i):X}" for i in (0, 1)] == ["599ED017FB08FC85", "2C73F08458540FA5"]


def test_dyadic_values_end_before_their_numbers() -> None:
    """Of the least length that the header allows, where the integers should follow: once an `IndexError`."""
    for end in (b"", b"\0", b"\0\0"):
        for k in (1, 8, 9):
            numbers = struct.pack("<hI", 0, 1) + bytes(-(-k // 8)) + end
            body = numbers + bytes([len(numbers)])
            shared = flat(k)
            assert laws.agreed(payload_of(11, 0, k, k, body, shared.layout), shared) == "InvalidValues"


SCHEMES = [*(qsgd.scheme(b) for b in range(2, 9)), *(eden.scheme(b) for b in range(1, 5)), terngrad.scheme()]


def whole(which: int, shared: SideInfo, seed: int, exponent: int) -> bytes:
    """The payload of a form: one of `SCHEMES`, or behind these PowerSGD of a rank."""
    update = numbers(shared.layout.size, seed, exponent)
    if which < len(SCHEMES):
        return encoder.quantized(SCHEMES[which]).encode(update, None, shared, seed).payload
    chosen = powersgd.powersgd(which - len(SCHEMES) + 1)
    return chosen.encode(update, chosen.init(shared.layout), shared, seed).payload


FORM_CASES = st.integers(0, len(SCHEMES) + 2)


@settings(max_examples=60)
@given(FORM_CASES, st.sampled_from([None, 0, 1, 2, 511, 512, 513, 8192, 8193]), SEEDS, EXPONENTS)
def test_random_forms(which: int, n: int | None, seed: int, exponent: int) -> None:
    shared = TENSORS if n is None else flat(n)
    assert laws.agreed(whole(which, shared, seed, exponent), shared) == ""


# Damage: both refuse for the same fault, or read the same.


WORDS = [struct.pack("<I", word) for word in (0x7F7FFFFF, 0xFF800000, 0x7FC00000, 0x7F800001)]
"""The largest float32, minus infinity, a NaN, and one of which numpy warns."""


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, SideInfo]:
    """A payload in any format and form with a few changes, most of them with a checksum that fits again."""
    seed, exponent = draw(SEEDS), draw(EXPONENTS)
    if draw(st.integers(0, 3)):
        n = draw(st.sampled_from([1, 9, 40, 300, 3000]))
        random = np.random.default_rng(seed)
        chosen = np.flatnonzero(random.random(n) < draw(st.sampled_from([0.02, 0.2, 0.7, 1.0])))
        shared, tags = flat(n), tags_for(chosen.tolist(), n)
        support = np.flatnonzero(random.random(n) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])))
        if draw(st.booleans()):  # near what is sent
            support = np.setxor1d(chosen, support[::20])
        shared = shared._replace(shared_positions=draw(st.sampled_from([support, support, support, support[1:], None])))
        if draw(st.integers(0, 9)) == 0:
            chosen, tags = positions.drawn(seed, n, len(chosen)), [positions.SEEDED]
        elif draw(st.integers(0, 2)) == 0:
            tags = [positions.REFERENCE]
        update = Sparse(chosen, numbers(len(chosen), seed, exponent), n)
        tag, format = draw(st.sampled_from(tags)), draw(st.sampled_from(FORMATS))
        payload = packed(update, tag, format, shared.layout, support.tolist(), seed)
    else:
        shared = TENSORS if draw(st.booleans()) else flat(draw(st.sampled_from([0, 1, 70, 600])))
        payload = whole(draw(FORM_CASES), shared, seed, exponent)
    data = bytearray(payload)
    for kind in draw(
        st.lists(st.sampled_from(["bit", "byte", "word", "head", "cut", "insert"]), min_size=1, max_size=4)
    ):
        place = draw(st.integers(payloads.HEADER_BYTES, max(len(data), payloads.HEADER_BYTES)))
        if kind == "bit" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[place : place + 1] = draw(st.sampled_from([b"\0", b"\1", b"\x7f", b"\x80", b"\xff"]))
        elif kind == "word":
            data[place : place + 4] = draw(st.sampled_from(WORDS))
        elif kind == "head":  # and the first bytes of the body
            place = draw(st.sampled_from([0, 2, 3, 4, 4, 5, 6, 10, 10, 11, 14, 22, 23, *range(26, 34)]))
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del data[len(data) - draw(st.integers(1, 9)) :]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=3))
    return aimed.repaired(bytes(data)) if draw(st.integers(0, 9)) else bytes(data), shared


@settings(max_examples=1000)
@given(damaged())
def test_damaged_payloads(case: tuple[bytes, SideInfo]) -> None:
    laws.held(*case)


@given(
    st.binary(max_size=70), st.sets(st.integers(0, 13)), st.sampled_from(["any", "length", "checksum"]), st.booleans()
)
def test_buffers(data: bytes, written: set[int], fits: str, new: bool) -> None:
    names = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    names += ["float16", "bfloat16", "float32", "float64"]
    specs = [TensorSpec(f"{dtype}.running_var", (1,), dtype) for dtype in names] + [TensorSpec("x", (2, 2), "float32")]
    layout = Layout((), tuple(specs))
    sizes = [spec.size * np.dtype(spec.dtype.replace("bfloat16", "uint16")).itemsize for spec in specs]
    before = [b"\x01" * size for size in sizes]
    if fits != "any":
        due = sum(size for number, size in enumerate(sizes) if number in written)
        data = data.ljust(due, b"\x01")[:due]
        rest = iter(np.split(np.frombuffer(data, np.uint8), np.cumsum([sizes[number] for number in sorted(written)])))
        whole = b"".join(next(rest).tobytes() if number in written else before[number] for number in range(len(sizes)))
        checksum = zlib.crc32(whole) if fits == "checksum" else 0
        data = sum(1 << number for number in written).to_bytes(2, "little") + struct.pack("<I", checksum) + data
    try:
        expected = reference.decode_buffers(data, laws.tensors(specs), None if new else before)
    except reference.Refused as refused:
        with pytest.raises(getattr(errors, str(refused))):
            buffer_codec.unpack(buffer_codec.unpack_changes(data, b"" if new else b"".join(before), layout), layout)
        return
    dense = buffer_codec.unpack_changes(data, b"" if new else b"".join(before), layout)
    for spec, entries in zip(specs, expected, strict=True):
        array = buffer_codec.unpack(dense, layout)[spec.name]
        if spec.dtype == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        assert array.ravel().tolist() == entries
