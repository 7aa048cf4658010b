"""Masks: the vector of a sparse model is the other one's without what is not there, by every road."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import (
    cafe,
    decay,
    ef21,
    encoder,
    error_feedback,
    float16_residual,
    momentum,
    powersgd,
    recipes,
    selection,
    wrappers,
)
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.tensors.replica import Replica
from fedpress.compression.tensors.update import Dense
from fedpress.compression.wire import payloads, values

LAYOUT = Layout(
    (TensorSpec("a", (3, 4), "float32"), TensorSpec("b", (5,), "float16"), TensorSpec("c", (2, 2), "bfloat16")),
    tied=(("again", "a"),),
)
N = LAYOUT.size
masks = st.lists(st.booleans(), min_size=N, max_size=N).map(lambda flags: Mask.of(np.array(flags)))


@given(masks, st.integers(0, 2**32 - 1))
def test_what_is_outside_is_left_out_and_comes_back_as_zero(mask: Mask, seed: int) -> None:
    layout = LAYOUT.within(mask)
    whole = flatten.unflatten(np.random.default_rng(seed).standard_normal(N).astype(np.float32), LAYOUT)
    expected = flatten.flatten(whole, LAYOUT)
    compact = flatten.flatten(whole, layout)
    np.testing.assert_array_equal(compact, expected[mask.flags])
    back = flatten.flatten(flatten.unflatten(compact, layout), LAYOUT)
    np.testing.assert_array_equal(back, np.where(mask.flags, expected, 0))
    flags = flatten.flags(layout)
    assert flags["again"] is flags["a"]
    np.testing.assert_array_equal(np.concatenate([flags[name].ravel() for name in "abc"]), mask.flags)
    assert (layout.size, layout.full) == (mask.count, LAYOUT)
    assert np.diff(layout.offsets).tolist() == [int(flags[name].sum()) for name in "abc"]
    places = np.arange(layout.size)
    np.testing.assert_array_equal(layout.present(layout.whole(places))[1], places)


@given(masks, masks, st.integers(0, 2**32 - 1))
def test_a_move_keeps_what_survives(before: Mask, after: Mask, seed: int) -> None:
    full = np.random.default_rng(seed).standard_normal(N)
    move = LAYOUT.within(before).change_to(LAYOUT.within(after))
    np.testing.assert_array_equal(
        move.apply(full[before.flags]), np.where(before.flags & after.flags, full, 0)[after.flags]
    )
    np.testing.assert_array_equal(full[before.flags][move.removed], full[before.flags & ~after.flags])
    np.testing.assert_array_equal(move.apply(full[before.flags], 9)[~before.flags[after.flags]], 9)


def test_no_mask_is_a_mask_of_all() -> None:
    everything = Mask.of(np.ones(N, np.bool_))
    for one, other in ((None, everything), (everything, None), (None, None)):
        move = MaskChange.between(one, other, N)
        assert move.survivors.tolist() == move.destinations.tolist() == list(range(N)) and not len(move.removed)


@given(masks, masks)
def test_the_fingerprint_covers_the_mask(one: Mask, other: Mask) -> None:
    assert (LAYOUT.within(one).fingerprint == LAYOUT.within(other).fingerprint) == (one == other)
    assert LAYOUT.within(one).fingerprint != LAYOUT.fingerprint
    payload = payloads.pack(Dense(np.zeros(one.count, np.float32)), LAYOUT.within(one), values.FLOAT32).payload
    if one != other:
        with pytest.raises((errors.LayoutMismatch, errors.SizeMismatch)):
            payloads.decode(payload, SideInfo(LAYOUT.within(other)))


def test_a_mask_of_another_model_is_refused() -> None:
    with pytest.raises(errors.LayoutError, match="the mask has 22 entries, the layout has 21"):
        LAYOUT.within(Mask.at(np.array([1]), 22))
    for bitmap in (b"\1", b"\1\0\0\0", b"\1\0\x20"):
        with pytest.raises(errors.LayoutError, match="no mask of 21 entries"):
            Mask(N, bitmap)
    other = Layout((TensorSpec("a", (21,), "float32"),))
    with pytest.raises(errors.LayoutError, match="more than their masks"):
        LAYOUT.change_to(other)


@given(masks)
def test_version_0_is_made_whole_and_cut_to_the_mask(mask: Mask) -> None:
    whole, layout = Replica.initial(np.linspace(-3, 0.1, N, dtype=np.float32), LAYOUT), LAYOUT.within(mask)
    part, grid = whole.within(mask), whole.grid
    np.testing.assert_array_equal(part.integers, whole.integers[mask.flags])
    np.testing.assert_array_equal(part.floats(layout), whole.floats(LAYOUT)[mask.flags])
    np.testing.assert_array_equal(
        grid.spacing(np.arange(layout.size), layout), grid.spacing(np.flatnonzero(mask.flags), LAYOUT)
    )


CHAINS: dict[str, Encoder[Any]] = {
    name: recipe.make(**({"density": 0.2} if "density" in recipe.takes else {}))
    for name, recipe in recipes.RECIPES.items()
    if name != "powersgd"
} | {
    "by layer": encoder.sparse(selection.top_k(0.2, scope="layer"), values.INT8),
    "decayed": decay.decayed(recipes.stc(0.1), 0.9, max_age=3),
    "decayed without a cap": decay.decayed(recipes.stc(0.1), 0.9),
    "ef21": ef21.ef21(encoder.sparse(selection.top_k(0.1), values.FLOAT16)),
    "half": float16_residual.half_precision(recipes.default(0.1)),
    "cafe": cafe.aggregate_feedback(encoder.dense()),
    "clipped": wrappers.clipped(recipes.default(0.1), 1.0),
    "all together": momentum.momentum_corrected(decay.decayed(recipes.default(0.1), 0.9, max_age=3)),
}


def kept_back(state: Any) -> float:
    """The sum of all that a state holds back, and of what it has dropped on purpose."""
    if isinstance(state, float16_residual.Halved):
        return float(float16_residual.widened(state).sum(dtype=np.float64) + state.discarded.sum())
    if isinstance(state, decay.Decayed):
        return kept_back(state.inner) + float(state.discarded.sum(dtype=np.float64))
    if isinstance(state, error_feedback.Residual):
        return float(state.residual.sum(dtype=np.float64))
    return kept_back(state.inner) if isinstance(state, momentum.Momentum) else 0.0


@pytest.mark.parametrize("name", CHAINS)
def test_every_encoder_follows_a_mask_and_accounts_for_what_falls_away(name: str) -> None:
    draw, chosen, layout = np.random.default_rng(1), CHAINS[name], LAYOUT
    state = chosen.init(layout)
    for number in range(30):
        update = draw.standard_normal(layout.size).astype(np.float32)
        payload, _, state = chosen.encode(update, state, SideInfo(layout, number), number)
        payloads.decode(payload, SideInfo(layout))
        state = chosen.acknowledge(state, bool(draw.random() < 0.7))
        if number % 3 == 2:
            after = LAYOUT.within(Mask.of(draw.random(N) < draw.choice([0.2, 0.9])))
            before, move = kept_back(state), layout.change_to(after)
            state, dropped = chosen.remap(state, move)
            assert dropped.shape == move.removed.shape
            assert before == pytest.approx(
                kept_back(state) + dropped.sum(dtype=np.float64), abs=1e-2 if name == "half" else 1e-5
            )
            layout = after


def test_an_entry_that_survives_keeps_its_residual() -> None:
    chosen = error_feedback.error_feedback(encoder.sparse(selection.top_k(k=1), values.FLOAT32))
    update = np.arange(1, N + 1, dtype=np.float32)
    *_, state = chosen.encode(update.copy(), chosen.init(LAYOUT), SideInfo(LAYOUT), 0)
    after = LAYOUT.within(Mask.at(np.array([0, 4, 20]), N))  # 20 was sent
    state, dropped = chosen.remap(chosen.acknowledge(state, True), LAYOUT.change_to(after))
    assert state.residual.tolist() == [1, 5, 0]
    assert dropped.sum() == update[:20].sum() - 6


def test_what_cannot_follow_says_so() -> None:
    layout = LAYOUT.within(Mask.at(np.arange(12), N))
    with pytest.raises(errors.LayoutError, match="low-rank factors need whole matrices"):
        powersgd.powersgd(1).init(layout)
    payload, _, state = powersgd.powersgd(1).encode(
        np.ones(N, np.float32), powersgd.powersgd(1).init(LAYOUT), SideInfo(LAYOUT), 0
    )
    with pytest.raises(errors.LayoutError, match="does not say how it follows"):
        powersgd.powersgd(1).remap(state, LAYOUT.change_to(layout))
    with pytest.raises(errors.PayloadError):
        payloads.decode(payload, SideInfo(layout))
