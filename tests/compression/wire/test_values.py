"""Value formats: the laws hold for every format of the registry, so a new entry is tested by being there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedpress.compression.tensors.layout import Vector
from fedpress.compression.wire import values
from fedpress.compression.wire.values import ValueFormat

FORMATS = [values.by_name(name) for name in values.names()]
LARGEST = float(np.finfo(np.float32).max)

FINITE = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, LARGEST, -LARGEST, 2.0**-149, -(2.0**-149), 65504.0, 65520.0]),
)
VECTORS = npst.arrays(np.float32, st.integers(0, 600), elements=FINITE, fill=FINITE)

every_format = pytest.mark.parametrize("format", FORMATS, ids=values.names())


@every_format
@given(vector=VECTORS)
def test_length_type_and_finiteness(format: ValueFormat, vector: Vector) -> None:
    data = format.pack(vector)
    again = format.unpack(data, len(vector))
    assert len(data) == format.length(len(vector)) or format.varies and len(data) > format.length(len(vector))
    assert again.dtype == np.float32 and again.shape == vector.shape and again.flags.writeable
    assert np.isfinite(again).all()


@every_format
@given(vector=VECTORS)
def test_no_sign_flips(format: ValueFormat, vector: Vector) -> None:
    again = format.unpack(format.pack(vector), len(vector))
    sent = (vector != 0) & (again != 0)
    np.testing.assert_array_equal(np.signbit(again[sent]), np.signbit(vector[sent]))


@every_format
@given(vector=VECTORS)
def test_what_is_not_said_is_no_longer_than_what_was_asked(format: ValueFormat, vector: Vector) -> None:
    """Error feedback converges only if the compressor contracts."""
    asked = vector.astype(np.float64)
    missed = asked - format.unpack(format.pack(vector), len(vector))
    assert np.linalg.norm(missed) <= np.linalg.norm(asked) * (1 + 1e-6)


@every_format
def test_a_view_of_a_larger_buffer_is_read(format: ValueFormat) -> None:
    vector = np.linspace(-1, 1, 300, dtype=np.float32)
    data = b"xyz" + format.pack(vector)
    np.testing.assert_array_equal(format.unpack(memoryview(data)[3:], 300), format.unpack(format.pack(vector), 300))


@every_format
def test_the_registry_finds_it(format: ValueFormat) -> None:
    assert values.by_name(format.name) is format and values.by_tag(format.tag) is format
    assert 1 <= format.tag <= 255 and format.length(0) == 0


def test_tags_and_names_never_change() -> None:
    assert {name: values.by_name(name).tag for name in values.names()} == {
        "float32": 1,
        "float16": 2,
        "int8": 3,
        "ternary": 4,
        "log4": 5,
        "int4": 6,
        "sign": 7,
        "step": 8,
        "log6": 9,
        "log8": 10,
        "dyadic": 11,
    }


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="'int9' is not one of float32, float16, int8, ternary, log4, int4, sign, step, log6, log8"
    ):
        values.by_name("int9")
    assert values.by_tag(0) is None


@given(VECTORS)
def test_float32_is_exact(vector: Vector) -> None:
    again = values.FLOAT32.unpack(values.FLOAT32.pack(vector), len(vector))
    np.testing.assert_array_equal(again.view(np.uint32), vector.view(np.uint32))


@given(VECTORS)
def test_float16_rounds_to_the_nearest_and_saturates(vector: Vector) -> None:
    again = values.FLOAT16.unpack(values.FLOAT16.pack(vector), len(vector)).astype(np.float64)
    inside = np.abs(vector) <= 65504
    assert (np.abs(again - vector) <= np.maximum(np.abs(vector) * 2.0**-11, 2.0**-25))[inside].all()
    np.testing.assert_array_equal(again[~inside], np.copysign(65504, vector[~inside]))


@given(VECTORS)
def test_int8_is_off_by_at_most_half_a_step_of_its_group(vector: Vector) -> None:
    again = values.INT8.unpack(values.INT8.pack(vector), len(vector)).astype(np.float64)
    for start in range(0, len(vector), 256):
        group = vector[start : start + 256].astype(np.float64)
        peak = np.abs(group).max()
        # Half a step, a rounding of the product, and the coarse grid of subnormal scales (2^-149, 127 times).
        bound = peak / 127 * 0.5 + peak * 2.0**-22 + 64 * 2.0**-149
        assert (np.abs(again[start : start + 256] - group) <= bound).all()


def test_int8_keeps_the_largest_of_each_group() -> None:
    vector = np.concatenate([np.full(256, 1e-3), np.full(44, 1e3)]).astype(np.float32)
    np.testing.assert_allclose(values.INT8.unpack(values.INT8.pack(vector), 300), vector, rtol=1e-6)


def test_int8_does_not_overflow_at_the_top() -> None:
    for bits in range(0x7F7FFF00, 0x7F800000):
        vector = np.array([bits], np.uint32).view(np.float32)
        assert np.isfinite(values.INT8.unpack(values.INT8.pack(vector), 1)).all()


@given(VECTORS)
def test_ternary_sends_the_mean_magnitude(vector: Vector) -> None:
    again = values.TERNARY.unpack(values.TERNARY.pack(vector), len(vector))
    if len(vector):
        assert set(np.abs(again).tolist()) == {float(np.float32(np.abs(vector.astype(np.float64)).mean()))}
        np.testing.assert_array_equal(np.signbit(again), np.signbit(vector))


@given(VECTORS)
def test_int4_is_off_by_at_most_half_a_step_of_its_group(vector: Vector) -> None:
    again = values.INT4.unpack(values.INT4.pack(vector), len(vector)).astype(np.float64)
    for start in range(0, len(vector), 256):
        group = vector[start : start + 256].astype(np.float64)
        peak = np.abs(group).max()
        bound = peak / 7 * 0.5 + peak * 2.0**-22 + 4 * 2.0**-149
        assert (np.abs(again[start : start + 256] - group) <= bound).all()


@given(VECTORS)
def test_sign_sends_the_mean_magnitude_of_each_group(vector: Vector) -> None:
    again = values.SIGN.unpack(values.SIGN.pack(vector), len(vector))
    for start in range(0, len(vector), 256):
        group = np.abs(vector[start : start + 256].astype(np.float64))
        np.testing.assert_allclose(np.abs(again[start : start + 256]), group.mean(), rtol=1e-6, atol=2.0**-149)
    np.testing.assert_array_equal(np.signbit(again), np.signbit(vector))


@pytest.mark.parametrize("wanted", [0, -1, 0.6, float("nan")])
def test_an_error_out_of_range_is_named(wanted: float) -> None:
    with pytest.raises(ValueError, match=f"relative_error is {wanted}, expected above 0"):
        values.stepped_to(wanted)


@pytest.mark.parametrize(
    ("format", "data"),
    [
        (values.FLOAT32, "0000803f 000000c0 00000000"),
        (values.FLOAT16, "003c 00c0 0000"),
        (values.INT8, "0402813c 40 81 00"),
        (values.TERNARY, "0000803f 02"),
        # Levels of half an octave from 2^-1.5 (index 249 of shift 22) up to 2 (256); the lowest says zero.
        (values.LOG4, "f930 f5 00"),
        (values.INT4, "2549923e 93 00"),
        # Span 4 octaves with zero: level 0 is 2^20 times 993, 31/8 octaves below 2; codes 23, 32 + 31 and 0.
        (values.LOG6, "e133 d70f00"),
        (values.LOG8, "e133 5cfc00"),
        (values.SIGN, "0000803f 02"),
        # Base 0.165 and 0.08 sqrt(12 * 5 / 3) = 0.358 a step; 2, 5 and 0 steps with code 1 (modulus 2).
        (values.STEP, "852a293e bf2db73e 02 0100 9201"),
    ],
    ids=lambda case: case.name if isinstance(case, ValueFormat) else "",
)
def test_golden_bytes(format: ValueFormat, data: str) -> None:
    assert format.pack(np.array([1, -2, 0], np.float32)).hex() == data.replace(" ", "")
