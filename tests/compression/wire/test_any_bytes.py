"""Whatever comes in is refused with its own error or valid; `make fuzz` holds the same for as long as one likes."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression import aimed, laws

from fedpress.compression.wire import payloads, positions

TESTS = Path(__file__).parents[2]
CORPUS, GOLDEN = sorted(TESTS.glob("fuzz/corpus/*")), sorted(TESTS.glob("compression/golden/*.bin"))

BODIES = st.one_of(
    st.binary(max_size=90),
    # Long runs of a byte, of zeros above all: unary codes and bitmaps.
    st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.integers(0, 120)), max_size=5).map(
        lambda runs: b"".join(part * count for part, count in runs)
    ),
)


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Bytes that look like a payload; `aimed` makes them one for a receiver that exists."""
    n = draw(st.sampled_from([receiver.layout.size for receiver in aimed.RECEIVERS]))
    k = draw(st.one_of(st.integers(0, 40), st.integers(0, n)))
    value_tag = draw(st.sampled_from([*range(1, 12), *payloads.FORMS]))
    index_tag = draw(st.sampled_from([0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 5, *range(32, 42), 63]))
    flags = draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
    body = draw(BODIES)
    if index_tag == positions.REFERENCE:
        part = st.sampled_from([0, 1, 1, 2, 3, 3, 4, 5, 32, 33, 35, 63])
        counts = draw(st.tuples(st.integers(0, 40), st.integers(0, 30)))
        body = struct.pack("<IBBHH", 0, draw(part), draw(part), *counts) + body
    return aimed.HEAD.pack(b"FP", 1, value_tag, index_tag, flags, n, k, 0) + bytes(4) + body


@settings(max_examples=1500)
@given(inputs())
def test_any_body_is_refused_or_valid(data: bytes) -> None:
    laws.held(*aimed.aimed(data))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.booleans(), st.sampled_from(aimed.RECEIVERS))
def test_any_bytes_are_refused_or_valid(data: bytes, magic: bool, receiver: aimed.SideInfo) -> None:
    laws.held(aimed.repaired(b"FP\1" + data if magic else data), receiver)


@pytest.mark.parametrize("known", CORPUS, ids=lambda path: path.stem)
def test_what_the_fuzzer_found(known: Path) -> None:
    """A file is named after how its values and positions are written and what comes of it."""
    expected = next(part for part in reversed(known.stem.split("-")) if not part.isdigit())
    assert laws.held(*aimed.aimed(known.read_bytes())) == ("" if expected == "valid" else expected)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_the_golden_files_are_aimed_as_they_are(golden: Path) -> None:
    payload, receiver = aimed.aimed(golden.read_bytes())
    assert payload == golden.read_bytes()
    assert laws.held(payload, receiver) == ""


def test_the_laws_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that accepts what it must not is found: here one that reads past infinities, and one that raises."""
    data = aimed.HEAD.pack(b"FP", 1, 4, 2, 0, 256, 1, 0) + bytes(4) + b"\x01" + bytes(31) + b"\0\0\x80\x7f\0"
    payload, receiver = aimed.aimed(data)
    assert laws.held(payload, receiver) == "NonFiniteValues"
    with monkeypatch.context() as patched, pytest.raises(AssertionError, match="NaN or infinite"):
        patched.setattr(payloads, "_numbers", lambda data, header, format: format.unpack(data, header.k))
        laws.held(payload, receiver)
    with monkeypatch.context() as patched, pytest.raises(IndexError):
        patched.setattr(positions, "unpack", lambda tag, data, n, k, reference: [][0])
        laws.held(payload, receiver)
