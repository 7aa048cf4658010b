"""Residuals as float16: what rounding drops is counted, nothing overflows, and small tensors do not vanish."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, error_feedback, float16_residual, selection
from fedpress.compression.tensors.layout import BLOCK, Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values

N = 2 * float16_residual.SIZE + 200
SHARED = SideInfo(
    Layout(
        (
            TensorSpec("large", (float16_residual.SIZE + 7,), "float32"),
            TensorSpec("rest", (N - float16_residual.SIZE - 7,), "float32"),
        )
    )
)
ROUNDING = 2.0**-24
FORMATS = {name: values.by_name(name) for name in ("float32", "int8", "ternary", "step")}


def kept(format: str = "float32", density: float = 0.02) -> encoder.Encoder[float16_residual.Halved[Any]]:
    return float16_residual.half_precision(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(density), FORMATS[format]))
    )


def by_block(entries: Any) -> Any:
    return [
        math.fsum(part)
        for part in np.split(np.asarray(entries, float), range(float16_residual.SIZE, N, float16_residual.SIZE))
    ]


@given(
    format=st.sampled_from(sorted(FORMATS)),
    scale=st.sampled_from([1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e30]),
    verdicts=st.lists(st.sampled_from(["accepted", "refused", "no verdict"]), min_size=1, max_size=8),
    seed=st.integers(0),
)
def test_law_of_what_is_discarded(format: str, scale: float, verdicts: list[str], seed: int) -> None:
    """accepted + residual + discarded == sum of the updates, by block; without discarded, nearly so by entry."""
    draw, chosen = np.random.default_rng(seed), kept(format)
    state = chosen.init(SHARED.layout)
    said, asked, bound, dropped = np.zeros(N), np.zeros(N), np.zeros(N), np.zeros(N)
    for verdict in verdicts:
        update = (draw.standard_normal(N) * scale * np.geomspace(1, 1e-6, N)).astype(np.float32)
        asked += update
        before = float16_residual.widened(state)
        payload, _, state = chosen.encode(update.copy(), state, SHARED, seed)
        after = float16_residual.widened(state)
        bound += ROUNDING * (2 * np.abs(update) + 2 * np.abs(before) + np.abs(after)) * 1.01 + 2.0**-149
        dropped += error_of(after)
        if verdict == "refused":
            state = chosen.acknowledge(state, False)
            bound += ROUNDING * np.abs(float16_residual.widened(state)) * 1.01
            dropped += error_of(float16_residual.widened(state))
        else:
            said += encoder.decode(payload, SHARED).dense()
            if verdict == "accepted":
                state = chosen.acknowledge(state, True)
        again = chosen.acknowledge(state, False)
        if verdict != "no verdict":
            np.testing.assert_array_equal(float16_residual.widened(again), float16_residual.widened(state))
            np.testing.assert_array_equal(again.discarded, state.discarded)
    missing = said + float16_residual.widened(state) - asked
    assert np.all(np.abs(missing) <= bound + dropped)
    sums = np.abs(np.array(by_block(missing)) + state.discarded)
    assert np.all(sums <= np.array(by_block(bound)) + 1e-13 * np.array(by_block(np.abs(asked) + np.abs(said))))


def error_of(residual: Vector) -> Any:
    """How far float16 may be from what was rounded to `residual`, with a margin for that being the rounded one."""
    peaks = np.maximum.reduceat(np.abs(residual), np.arange(0, N, float16_residual.SIZE)).astype(float)
    return 1.01 * np.maximum(2.0**-11 * np.abs(residual), 2.0**-39 * np.repeat(peaks, float16_residual.SIZE)[:N])


def rounded(residual: Vector) -> float16_residual.Halved[Any]:
    chosen = float16_residual.half_precision(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    )
    shared = SideInfo(Layout((TensorSpec("weight", residual.shape, "float32"),)))
    update = residual.copy()
    update[-1] = 3e38  # what is sent
    return chosen.encode(update, chosen.init(shared.layout), shared, 0).state


def test_every_block_has_a_unit_of_its_own() -> None:
    """Blocks from the smallest numbers of float32 to its largest stand side by side, in more than one piece."""
    n = BLOCK + 3 * float16_residual.SIZE + 5
    exponents = np.repeat(np.linspace(-120, 120, -(-n // float16_residual.SIZE)).astype(int), float16_residual.SIZE)[:n]
    residual = np.ldexp(np.random.default_rng(1).uniform(1, 2, n), exponents).astype(np.float32)
    state = rounded(residual)
    found = float16_residual.widened(state)
    np.testing.assert_allclose(found[:-1], residual[:-1], rtol=2.0**-11)
    assert found[-1] == 0 and np.isfinite(state.residual).all()
    lost = np.add.reduceat(residual[:BLOCK].astype(float) - found[:BLOCK], np.arange(0, BLOCK, float16_residual.SIZE))
    np.testing.assert_array_equal(state.discarded[: BLOCK // float16_residual.SIZE], lost)


def test_the_smallest_number_and_zero_stay_as_they_are() -> None:
    residual = np.zeros(5, np.float32)
    residual[1] = np.finfo(np.float32).smallest_subnormal
    state = rounded(residual)
    np.testing.assert_array_equal(float16_residual.widened(state), residual)
    assert not state.discarded.any()


def test_a_state_takes_half_the_bytes() -> None:
    layout = Layout((TensorSpec("weight", (10**6,), "float32"),))
    full = error_feedback.error_feedback(encoder.sparse(selection.top_k(0.01), values.TERNARY))
    update = np.random.default_rng(1).standard_normal(10**6).astype(np.float32)
    sizes = []
    for chosen in (full, float16_residual.half_precision(full)):
        state = chosen.encode(update.copy(), chosen.init(layout), SideInfo(layout), 0).state
        sizes.append(sum(array.nbytes for array in leaves(state)))
    assert sizes[1] < 0.55 * sizes[0]


def leaves(state: Any) -> list[Any]:
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in leaves(part)]
    return [] if state is None else [state]


def test_a_nan_leaves_the_state_whole() -> None:
    chosen = kept()
    *_, state = chosen.encode(np.ones(N, np.float32), chosen.init(SHARED.layout), SHARED, 0)
    before = [leaf.copy() for leaf in leaves(state)]
    with pytest.raises(errors.NonFiniteError):
        chosen.encode(np.full(N, np.nan, np.float32), state, SHARED, 0)
    for leaf, same in zip(leaves(state), before, strict=True):
        np.testing.assert_array_equal(leaf, same)


def test_training_starts_ahead_by_what_is_kept() -> None:
    top = error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    ahead = float16_residual.half_precision(error_feedback.step_ahead(top, 0.5))
    assert ahead.offset(ahead.init(SHARED.layout)) is None
    *_, state = ahead.encode(np.arange(N, dtype=np.float32), ahead.init(SHARED.layout), SHARED, 0)
    offset = ahead.offset(state)
    assert offset is not None
    np.testing.assert_array_equal(offset, float16_residual.widened(state) / 2)


def test_an_encoder_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match=r"did you mean half_precision\(error_feedback"):
        float16_residual.half_precision(encoder.dense()).init(SHARED.layout)  # type: ignore[arg-type]
