"""The codec in two calls: the largest entries arrive in the shapes that were given, the others are zeros."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedpress.compression import codec, errors
from fedpress.compression.wire import values

UPDATES = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(UPDATES, st.floats(0, 1, exclude_min=True))
def test_the_largest_entries_are_exact_as_float32(update: NDArray[np.float32], density: float) -> None:
    decoded = codec.decode(codec.encode(update, density, values="float32"), like=update)
    assert decoded.shape == update.shape and decoded.dtype == np.float32
    sent = decoded != 0
    np.testing.assert_array_equal(decoded[sent], update[sent])
    assert sent.sum() == min(max(1, round(density * update.size)), np.count_nonzero(update))
    assert np.abs(update[~sent]).max(initial=0) <= np.abs(update[sent]).min(initial=np.inf)


@pytest.mark.parametrize("name", values.names())
def test_every_format_is_read_without_being_named(name: str) -> None:
    update = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    decoded = codec.decode(codec.encode(update, 0.1, values=name), like=update)
    sent = decoded != 0
    assert 0 < sent.sum() <= 120
    assert np.linalg.norm((decoded - update)[sent]) < 0.5 * np.linalg.norm(update[sent])


def test_buffers_stay_out() -> None:
    arrays = {"weight": np.ones((3, 2), np.float64), "norm.running_var": np.ones(2), "steps": np.array(7)}
    decoded = codec.decode(codec.encode(arrays, 1.0, values="float32"), like=arrays)
    assert list(decoded) == ["weight"]
    np.testing.assert_array_equal(decoded["weight"], arrays["weight"])
    assert decoded["weight"].dtype == np.float64


def test_wrong_input_is_named() -> None:
    with pytest.raises(errors.NonFiniteError, match="did training diverge"):
        codec.encode([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"density 2 is out of range"):
        codec.encode([1.0], 2)
    with pytest.raises(ValueError, match="value format 'float31' is not one of float32"):
        codec.encode([1.0], values="float31")
    with pytest.raises(errors.SizeMismatch):
        codec.decode(codec.encode([1.0, 2.0]), like=[0.0])
    with pytest.raises(errors.LayoutMismatch):
        codec.decode(codec.encode(np.ones((2, 3))), like=np.ones((3, 2)))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert np.isfinite(codec.decode(data, like=np.zeros(9))).all()
    except errors.PayloadError:
        pass
