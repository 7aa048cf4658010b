"""Forms of whole updates: what every one of them promises, and one crafted payload for each fault."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.samples import decoded_of, normal, side_info_of

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, powersgd
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.quantizers import eden, qsgd, terngrad
from fedpress.compression.tensors import update
from fedpress.compression.wire import payloads, values

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEMES = {
    **{f"qsgd-{bits}": qsgd.scheme(bits) for bits in range(2, 9)},
    **{f"eden-{bits}": eden.scheme(bits) for bits in range(1, 5)},
    "terngrad": terngrad.scheme(),
    "terngrad-clipped": terngrad.scheme(clip=2.5),
}
every_scheme = pytest.mark.parametrize("name", SCHEMES)
UNBIASED = [name for name in SCHEMES if name != "terngrad-clipped"]


@every_scheme
@given(n=st.integers(0, 40), seed=st.integers(0, 2**63 - 1), magnitude=st.floats(-44, 38))
def test_length_type_and_finiteness(name: str, n: int, seed: int, magnitude: float) -> None:
    side_info, scheme = side_info_of((n,)), SCHEMES[name]
    with np.errstate(over="ignore"):
        vector = (np.random.default_rng(seed).uniform(-1, 1, n) * 10.0**magnitude).astype(np.float32)
    body, decoded = scheme.pack(vector, side_info.layout, seed)
    assert len(body) == scheme.form.length(scheme.parameter, side_info.layout)
    payload, *_ = encoder.quantized(scheme).encode(vector.copy(), None, side_info, seed)
    assert len(payload) == payloads.HEADER_BYTES + 1 + len(body)
    assert encoder.decode(payload, side_info).dense().tobytes() == decoded.dense().tobytes()
    assert isinstance(decoded, update.Dense) and decoded.values.dtype == np.float32 and decoded.size == n
    assert np.isfinite(decoded.values).all() and decoded.values.flags.writeable
    assert payload == encoder.quantized(scheme).encode(vector.copy(), None, side_info, seed).payload


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_over_many_seeds(name: str) -> None:
    """The mean over the seeds comes as close to the update as chance allows, in every direction looked at."""
    side_info, seeds = side_info_of((4, 200), (7,), (217,)), 400
    vector = normal(1024)
    chosen = encoder.quantized(SCHEMES[name])
    drawn = np.array([decoded_of(chosen, vector, side_info, seed) for seed in range(seeds)], np.float64)
    error, deviation = drawn.mean(axis=0) - vector, drawn.std(axis=0) / np.sqrt(seeds)
    rare = 12 * np.ptp(drawn, axis=0).max() / seeds  # an outcome may be so rare that it was never drawn
    assert (np.abs(error) <= 5.5 * deviation + rare).all()
    # A bias too small to be seen in one entry adds up along directions.
    random = np.random.default_rng(1)
    for direction in (vector, np.sign(vector), np.ones(1024), *random.standard_normal((20, 1024))):
        along = drawn @ direction
        chance = 5 * along.std() / np.sqrt(seeds)
        assert abs(along.mean() - vector.astype(np.float64) @ direction) <= chance + 1e-4 * np.abs(vector @ direction)


@every_scheme
def test_the_error_is_as_small_as_the_bits_allow(name: str) -> None:
    side_info, vector = side_info_of((20000,)), normal(20000)
    missed = decoded_of(encoder.quantized(SCHEMES[name]), vector, side_info) - vector
    error = float(np.sum(missed.astype(np.float64) ** 2) / np.sum(vector.astype(np.float64) ** 2))
    # EDEN: what Lloyd and Max leave of a normal variable, 1 / (1 - d) - 1; QSGD: at most a quarter of a squared level.
    bounds = {"eden-1": 0.58, "eden-2": 0.136, "eden-3": 0.037, "eden-4": 0.0099}
    bounds |= {f"qsgd-{bits}": 0.25 * (4.5 / (2 ** (bits - 1) - 1)) ** 2 for bits in range(2, 9)}
    assert error < bounds.get(name, 5)


@every_scheme
def test_zeros_stay_zeros(name: str) -> None:
    side_info = side_info_of((600,), (9000,))
    assert not decoded_of(encoder.quantized(SCHEMES[name]), np.zeros(9600, np.float32), side_info).any()


EXAMPLE = side_info_of((6, 5), (7,))
EXAMPLES: dict[str, Encoder] = {
    "qsgd": encoder.quantized(qsgd.scheme(3)),
    "terngrad": encoder.quantized(terngrad.scheme()),
    "eden": encoder.quantized(eden.scheme(2)),
    "lowrank": powersgd.powersgd(1),
}


def example(name: str) -> bytes:
    vector = (np.arange(37) * 37 % 64 - 31).astype(np.float32) / 32
    chosen = EXAMPLES[name]
    return chosen.encode(vector, chosen.init(EXAMPLE.layout), EXAMPLE, 7).payload


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_files_are_read_for_ever(name: str) -> None:
    """What is read stays the same; which bytes an encoder draws may change with numpy's generators."""
    golden = (GOLDEN / f"1-form-{name}.bin").read_bytes()
    expected = np.frombuffer((GOLDEN / f"1-form-{name}.float32").read_bytes(), "<f4")
    np.testing.assert_allclose(encoder.decode(golden, EXAMPLE).dense(), expected, rtol=1e-6)
    assert payloads.inspect(golden) | {"values": "", "fingerprint": "", "bytes": 0, "value_bytes": 0} == {
        "version": 1,
        "values": "",
        "positions": "all",
        "size": 37,
        "count": 37,
        "fingerprint": "",
        "bytes": 0,
        "header_bytes": payloads.HEADER_BYTES,
        "position_bytes": 0,
        "value_bytes": 0,
    }
    assert payloads.inspect(golden)["values"] == name and payloads.inspect(golden)["bytes"] == len(golden)


FIELDS = struct.Struct("<2sBBBBIII")


def crafted(payload: bytes, body: bytes | None = None, index_tag: int = 0, k: int | None = None) -> bytes:
    """Return the payload with fields and body changed and the checksum fitting."""
    fields = list(FIELDS.unpack_from(payload))
    fields[3], fields[6] = index_tag, fields[6] if k is None else k
    head, body = FIELDS.pack(*fields), payload[payloads.HEADER_BYTES :] if body is None else body
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_fault_is_named(name: str) -> None:
    payload = example(name)
    body = payload[payloads.HEADER_BYTES :]
    cases: list[tuple[bytes, type[errors.PayloadError], str]] = [
        (crafted(payload, b""), errors.Truncated, "no parameter of its form"),
        (crafted(payload, body[:-1]), errors.Truncated, "announces at least"),
        (crafted(payload, body + b"x"), errors.LengthMismatch, "announces at most"),
        (crafted(payload, index_tag=2), errors.UnknownFormat, "a form of whole updates"),
        (crafted(payload, k=36), errors.InvalidPositions, "has 36 of 37 entries"),
        (payload[:-1] + bytes([payload[-1] ^ 1]), errors.ChecksumMismatch, "damaged on the way"),
    ]
    if name != "lowrank":
        cases.append((crafted(payload, b"\xff" + body[1:]), errors.UnknownFormat, "parameter 255 of the form"))
    for broken, fault, words in cases:
        with pytest.raises(fault, match=words):
            encoder.decode(broken, EXAMPLE)
    with pytest.raises(errors.ChecksumMismatch):
        payloads.inspect(payload[:-1] + bytes([payload[-1] ^ 1]))


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("value", [0x7FC00000, 0x7F800000, 0x7F800001], ids=["NaN", "infinity", "signalling NaN"])
def test_scales_and_factors_that_are_not_finite_are_refused(name: str, value: int) -> None:
    body = bytearray(example(name)[payloads.HEADER_BYTES :])
    place = 1 + (8 if name == "eden" else 0)
    body[place : place + 4] = struct.pack("<I", value)  # numpy warns of the last of them, which is an error in tests
    with pytest.raises(errors.NonFiniteValues):
        encoder.decode(crafted(example(name), bytes(body)), EXAMPLE)


@given(name=st.sampled_from(list(EXAMPLES)), body=st.binary(max_size=120), parameter=st.integers(0, 9))
def test_any_body_is_read_or_refused(name: str, body: bytes, parameter: int) -> None:
    payload = example(name)
    chosen = payloads.FORMS[payload[3]]
    length = chosen.length(parameter, EXAMPLE.layout)
    fitting = bytes([parameter]) + np.resize(np.frombuffer(b"\0" + body, np.uint8), length or 5).tobytes()
    for tried in (body, fitting):
        try:
            assert np.isfinite(encoder.decode(crafted(payload, tried), EXAMPLE).dense()).all()
        except errors.PayloadError:
            pass


def test_tags_and_names_never_change() -> None:
    assert {form.name: tag for tag, form in payloads.FORMS.items()} == {
        "qsgd": 64,
        "terngrad": 65,
        "eden": 66,
        "lowrank": 67,
    }
    assert not any(values.by_tag(tag) for tag in payloads.FORMS)


def test_a_layout_that_is_too_large_for_the_header_is_named() -> None:
    with pytest.raises(errors.LayoutError, match="holds at most 4294967295"):
        payloads.pack_whole(qsgd.FORM, 2, b"", side_info_of((2**32,)).layout)
