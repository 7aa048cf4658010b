"""Vectors for the benchmark of the codec: the same for a seed, and as their names say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.simulations.benchmarks import codec_data


@pytest.mark.parametrize("kind", codec_data.KINDS)
@settings(max_examples=20)
@given(n=st.integers(16, 5000), seed=st.integers(0, 99))
def test_a_seed_gives_one_vector_of_finite_float32(kind: str, n: int, seed: int) -> None:
    vector = codec_data.KINDS[kind](n, seed)
    assert vector.shape == (n,) and vector.dtype == np.float32 and np.isfinite(vector).all()
    np.testing.assert_array_equal(vector, codec_data.KINDS[kind](n, seed))


def test_hard_cases_are_what_their_names_say() -> None:
    n = 100_000
    assert len(np.unique(codec_data.KINDS["equal"](n, 0))) == 1
    assert np.mean(codec_data.KINDS["zeros"](n, 0) == 0) == pytest.approx(0.999, abs=5e-4)
    assert np.mean(codec_data.KINDS["one-value"](n, 0) == 0.5) == pytest.approx(0.999, abs=5e-4)
    assert len(np.unique(codec_data.KINDS["few-values"](n, 0))) == 7
    assert np.abs(codec_data.KINDS["subnormal"](n, 0)).max() < np.finfo(np.float32).tiny


def test_large_entries_cluster() -> None:
    """In blocks, the largest hundredth of an update is far from spread evenly; that of independent values is not."""
    shares = {}
    for kind in ("clustered", "uniform"):
        size = np.abs(codec_data.KINDS[kind](200_000, 1))
        large = size > np.quantile(size, 0.99)
        shares[kind] = large.reshape(20, -1).mean(axis=1).max()
    assert shares["clustered"] > 2 * shares["uniform"]
