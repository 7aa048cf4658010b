"""Forms of whole updates: what every one of them promises, and one crafted payload for each fault."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.coding import bits as bit_codes
from fedpress.compression.encoders import encoder, error_feedback, powersgd, sign_sgd
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.quantizers import eden, lowrank, qsgd, terngrad
from fedpress.compression.tensors import update
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
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


def shared_of(*shapes: tuple[int, ...]) -> SideInfo:
    return SideInfo(Layout(tuple(TensorSpec(str(index), shape, "float32") for index, shape in enumerate(shapes))))


def normal(n: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def said(chosen: Encoder[None], vector: Vector, shared: SideInfo, seed: int = 0) -> Vector:
    return encoder.decode(chosen.encode(vector.copy(), None, shared, seed).payload, shared).dense()


@every_scheme
@given(n=st.integers(0, 40), seed=st.integers(0, 2**63 - 1), magnitude=st.floats(-44, 38))
def test_length_type_and_finiteness(name: str, n: int, seed: int, magnitude: float) -> None:
    shared, scheme = shared_of((n,)), SCHEMES[name]
    with np.errstate(over="ignore"):
        vector = (np.random.default_rng(seed).uniform(-1, 1, n) * 10.0**magnitude).astype(np.float32)
    body, decoded = scheme.pack(vector, shared.layout, seed)
    assert len(body) == scheme.form.length(scheme.parameter, shared.layout)
    payload, *_ = encoder.quantized(scheme).encode(vector.copy(), None, shared, seed)
    assert len(payload) == payloads.HEADER_BYTES + 1 + len(body)
    assert encoder.decode(payload, shared).dense().tobytes() == decoded.dense().tobytes()
    assert isinstance(decoded, update.Dense) and decoded.values.dtype == np.float32 and decoded.size == n
    assert np.isfinite(decoded.values).all() and decoded.values.flags.writeable
    assert payload == encoder.quantized(scheme).encode(vector.copy(), None, shared, seed).payload


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_over_many_seeds(name: str) -> None:
    """The mean over the seeds comes as close to the update as chance allows, in every direction looked at."""
    shared, seeds = shared_of((4, 200), (7,), (217,)), 400
    vector = normal(1024)
    chosen = encoder.quantized(SCHEMES[name])
    drawn = np.array([said(chosen, vector, shared, seed) for seed in range(seeds)], np.float64)
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
    shared, vector = shared_of((20000,)), normal(20000)
    missed = said(encoder.quantized(SCHEMES[name]), vector, shared) - vector
    error = float(np.sum(missed.astype(np.float64) ** 2) / np.sum(vector.astype(np.float64) ** 2))
    # EDEN: what Lloyd and Max leave of a normal variable, 1 / (1 - d) - 1; QSGD: at most a quarter of a squared level.
    bounds = {"eden-1": 0.58, "eden-2": 0.136, "eden-3": 0.037, "eden-4": 0.0099}
    bounds |= {f"qsgd-{bits}": 0.25 * (4.5 / (2 ** (bits - 1) - 1)) ** 2 for bits in range(2, 9)}
    assert error < bounds.get(name, 5)


def test_qsgd_is_off_by_less_than_a_level() -> None:
    shared, vector = shared_of((5000,)), normal(5000)
    for bits in range(2, 9):
        missed = np.abs(said(encoder.quantized(qsgd.scheme(bits)), vector, shared) - vector)
        for start in range(0, 5000, qsgd.BUCKET):
            peak = np.abs(vector[start : start + qsgd.BUCKET]).max()
            assert missed[start : start + qsgd.BUCKET].max() < peak / (2 ** (bits - 1) - 1) * (1 + 1e-6)


def test_terngrad_has_a_scale_for_each_tensor() -> None:
    shared = shared_of((3,), (0,), (70000,))
    vector = np.concatenate([[1, -1, 0], np.tile([100, -100], 35000)]).astype(np.float32)
    np.testing.assert_array_equal(said(encoder.quantized(terngrad.scheme()), vector, shared), vector)


def test_terngrad_with_a_clip_says_no_more_than_that() -> None:
    vector = normal(1000)
    largest = np.abs(said(encoder.quantized(terngrad.scheme(clip=1.5)), vector, shared_of((1000,)))).max()
    np.testing.assert_allclose(largest, 1.5 * vector.std(), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 8192, 8193, 100_000])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_keeps_the_part_along_the_update(n: int, bits: int) -> None:
    vector = normal(n) ** 3
    decoded = said(encoder.quantized(eden.scheme(bits)), vector, shared_of((n,)), seed=n).astype(np.float64)
    np.testing.assert_allclose(decoded @ vector, vector.astype(np.float64) @ vector, rtol=1e-4)


@every_scheme
def test_zeros_stay_zeros(name: str) -> None:
    shared = shared_of((600,), (9000,))
    assert not said(encoder.quantized(SCHEMES[name]), np.zeros(9600, np.float32), shared).any()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 70_001])
def test_codes_come_back(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, count).astype(np.uint8)
    data = bit_codes.pack_codes(codes, bits)
    assert len(data) == bit_codes.codes_length(count, bits)
    np.testing.assert_array_equal(bit_codes.unpack_codes(memoryview(data), count, bits), codes)


# PowerSGD


def test_a_matrix_of_low_rank_is_said_exactly() -> None:
    shared, random = shared_of((30, 5, 4), (30,), (40, 50)), np.random.default_rng(1)
    matrices = [
        random.standard_normal((rows, 3)) @ random.standard_normal((3, columns))
        for rows, columns in ((30, 20), (40, 50))
    ]
    vector = np.concatenate([matrices[0].ravel(), np.ones(30), matrices[1].ravel()]).astype(np.float32)
    chosen = powersgd.powersgd(3)
    payload, _, state = chosen.encode(vector.copy(), chosen.init(shared.layout), shared, 1)
    assert [part.rank for part in lowrank.parts(shared.layout, 3)] == [3, 0, 3]
    np.testing.assert_allclose(encoder.decode(payload, shared).dense(), vector, atol=1e-4)
    assert len(payload) < len(encoder.dense().encode(vector, None, shared, 0).payload) / 3
    assert len(state.right) == 3 * (20 + 50)


@given(seed=st.integers(0, 2**32), rank=st.integers(1, 4), rows=st.integers(1, 12), columns=st.integers(0, 12))
def test_powersgd_contracts(seed: int, rank: int, rows: int, columns: int) -> None:
    shared, chosen = shared_of((rows, columns), (3,)), powersgd.powersgd(rank)
    vector, state = normal(rows * columns + 3, seed), chosen.init(shared.layout)
    last = np.inf
    for _ in range(4):  # the same update again: the power iteration goes on, and misses less each time
        payload, _, state = chosen.encode(vector.copy(), state, shared, seed)
        missed = float(np.linalg.norm(encoder.decode(payload, shared).dense() - vector))
        assert missed <= min(last, float(np.linalg.norm(vector))) * (1 + 1e-4) + 1e-5
        last = missed


def test_powersgd_begins_anew_after_zeros_and_refuses_what_is_not_finite() -> None:
    shared, chosen = shared_of((10, 10)), powersgd.powersgd(1)
    state = chosen.init(shared.layout)
    for vector in (np.zeros(100, np.float32), normal(100)):
        payload, _, state = chosen.encode(vector, state, shared, 0)
    assert encoder.decode(payload, shared).dense().any() and state.right.any()
    with pytest.raises(errors.NonFiniteError, match="did training diverge"):
        chosen.encode(np.full(100, np.inf, np.float32), state, shared, 0)
    huge = np.full(100, np.finfo(np.float32).max, np.float32)
    assert np.isfinite(encoder.decode(chosen.encode(huge, state, shared, 0).payload, shared).dense()).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adding_factors_is_adding_the_matrix(dtype: type[np.float32] | type[np.float64]) -> None:
    random = np.random.default_rng(1)
    left, right = (random.standard_normal((size, 2)).astype(np.float32) for size in (300, 700))
    one = update.LowRank((update.Factors(left, right), normal(5)))
    accumulator, dense = np.ones(one.size, dtype), np.ones(one.size, dtype)
    one.add_to(accumulator, 0.3)
    update.Dense(one.dense()).add_to(dense, 0.3)
    np.testing.assert_array_equal(accumulator, dense)
    np.testing.assert_allclose(one.dense()[:-5], (left @ right.T).ravel(), rtol=1e-5, atol=1e-6)
    assert one.size == one.count == len(one.values) == one.sparse().count == 210_005
    with pytest.raises(ValueError, match=r"shape \(210005,\)"):
        one.add_to(np.zeros(3))


def test_error_feedback_keeps_what_the_factors_miss() -> None:
    shared, chosen = shared_of((10, 12), (5,)), error_feedback.error_feedback(powersgd.powersgd(2))
    state, accepted, updates = chosen.init(shared.layout), np.zeros(125), np.zeros(125)
    for round in range(12):
        vector = normal(125, round)
        updates += vector
        payload, _, state = chosen.encode(vector, state, shared, round)
        state = chosen.acknowledge(state, round % 3 > 0)
        if round % 3:
            encoder.decode(payload, shared).add_to(accepted)
    np.testing.assert_allclose(accepted + state.residual, updates, atol=1e-5)


# signSGD


def test_signs_are_said_and_zeros_vote_by_the_seed() -> None:
    shared, vector = shared_of((2000,)), normal(2000)
    vector[1000:] = 0
    decoded = said(sign_sgd.signs(), vector, shared, 1)
    np.testing.assert_array_equal(decoded[:1000], np.sign(vector[:1000]))
    assert set(decoded[1000:].tolist()) == {-1.0, 1.0} and abs(decoded[1000:].sum()) < 150
    np.testing.assert_array_equal(decoded, said(sign_sgd.signs(), vector, shared, 1))
    assert (decoded != said(sign_sgd.signs(), vector, shared, 2)).any()
    assert sign_sgd.signs().init(shared.layout) is None
    assert said(sign_sgd.signs(), np.empty(0, np.float32), shared_of()).size == 0
    with pytest.raises(errors.NonFiniteError):
        sign_sgd.signs().encode(np.full(2000, np.nan, np.float32), None, shared, 0)


# On the wire


EXAMPLE = shared_of((6, 5), (7,))
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


def test_factors_whose_product_overflows_are_refused() -> None:
    body = bytearray(example("lowrank")[payloads.HEADER_BYTES :])
    body[1 : 1 + 44] = np.full(11, 1e30, "<f4").tobytes()
    with pytest.raises(errors.NonFiniteValues, match="product of two factors"):
        encoder.decode(crafted(example("lowrank"), bytes(body)), EXAMPLE)


def test_factors_are_refused_whose_product_is_rounded_to_infinity() -> None:
    """Each small product is just above half a unit in the last place of the sum: every addition rounds up so far."""
    shared, small = shared_of((600, 600)), 2.0**103 * 1.01
    below = float(np.finfo(np.float32).max) - 255 * small  # so that the exact sum is a float32
    for largest, fits in ((below, False), (3.39e38, True)):
        right = np.tile(np.array([largest] + [small] * 254, np.float32), (600, 1))
        body = lowrank.pack(update.LowRank((update.Factors(np.ones((600, 255), np.float32), right),)))
        payload = payloads.pack_whole(lowrank.FORM, 255, body, shared.layout)
        if fits:
            assert np.isfinite(encoder.decode(payload, shared).dense()).all()
            continue
        with pytest.raises(errors.NonFiniteValues):
            encoder.decode(payload, shared)


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: qsgd.scheme(1), "bits is 1, expected 2 to 8"),
        (lambda: qsgd.scheme(9), "bits is 9, expected 2 to 8"),
        (lambda: eden.scheme(5), "bits is 5, expected 1 to 4"),
        (lambda: terngrad.scheme(0), "clip is 0, expected a finite number"),
        (lambda: powersgd.powersgd(0), "rank is 0, expected 1 to 255"),
        (lambda: payloads.pack_whole(qsgd.FORM, 2, b"", shared_of((2**32,)).layout), "holds at most 4294967295"),
    ],
)
def test_wrong_arguments_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
