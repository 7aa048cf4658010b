"""Uniform steps: the error that was asked for, in few bits, whatever the scale."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders.top_k import largest
from fedpress.compression.wire import uniform_steps, values
from fedpress.simulations.benchmarks.codec_data import clustered


@given(st.integers(0, 2**32), st.floats(-30, 30), st.sampled_from([0.02, 0.08, 0.2]))
def test_step_keeps_the_error_that_is_asked_for(seed: int, scale: float, wanted: float) -> None:
    vector = np.random.default_rng(seed).laplace(scale=2.0**scale, size=2000).astype(np.float32)
    vector = vector[np.abs(vector) > 2.0**scale]
    format = values.stepped_to(wanted)
    again = format.unpack(format.pack(vector), len(vector))
    assert np.linalg.norm(again - vector) <= 1.05 * wanted * np.linalg.norm(vector)
    # A decoder needs the tag alone, not the error that the encoder was told.
    np.testing.assert_array_equal(values.STEP.unpack(format.pack(vector), len(vector)), again)


def test_step_and_groups_take_few_bits_on_an_update() -> None:
    vector = clustered(2_000_000)
    update = vector[largest(vector, 20_000)]
    data = values.STEP.pack(update)
    assert 8 * len(data) / len(update) < 3.0
    assert np.linalg.norm(values.STEP.unpack(data, len(update)) - update) <= 0.08 * np.linalg.norm(update)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300))
def test_what_the_encoder_reads_is_what_a_decoder_reads(entries: list[float]) -> None:
    vector = np.array(entries, np.float32)
    data, read = uniform_steps.encode(vector, 0.08)
    assert len(data) >= uniform_steps.least(len(vector))
    assert uniform_steps.unpack(data, len(vector)).tobytes() == read.tobytes()


def test_bits_that_no_encoder_writes_are_refused() -> None:
    data, _ = uniform_steps.encode(np.array([1, -5, 3], np.float32), 0.2)
    for broken in (data + b"\0", data[:-1] + b"\0", struct.pack("<ffB", 1, 1, 0) + b"\x3f\0\x07"):
        with pytest.raises(errors.InvalidValues, match="the magnitudes cannot be read"):
            uniform_steps.unpack(broken, 3)
