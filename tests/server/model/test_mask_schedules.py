"""Mask schedules, what they do to the server's model, and how a mask goes down."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.messages import records
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors import flatten, layout
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.checkpoint import state
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel, ModelState
from fedpress.server.model.mask_history import KEPT, MaskHistory
from fedpress.server.model.mask_schedules import Ballot, Sparsity, VoteRequest
from fedpress.server.model.versions import Downlink

LAYOUT = Layout(
    (TensorSpec("a", (20, 10), "float32"), TensorSpec("b", (20,), "float32"), TensorSpec("c", (5, 20), "float32"))
)
N = LAYOUT.size
FIRST = dynamic_sparsity.random_mask(LAYOUT, 0.3, 1, "layer")


def normal(size: int, seed: int) -> layout.Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def left(mask: Mask) -> list[int]:
    return np.diff(LAYOUT.within(mask).offsets).tolist()


def test_pruning_as_it_goes_takes_the_smallest_and_never_gives_back() -> None:
    schedule, layout, sizes = Sparsity("gradual", density=0.1, begin=2, every=3).schedule(None, 20), LAYOUT, []
    assert schedule.first is None and schedule.vote_request(5) is None
    for number in range(1, 30):
        master = normal(layout.size, number)
        mask = schedule.after(number, master, layout, None)
        if mask is None:
            continue
        assert (number - 2) % 3 == 0 or number == 20
        if layout.mask is not None:
            assert not (mask.flags & ~layout.mask.flags).any()
        for start, stop, k in zip(layout.offsets[:-1], layout.offsets[1:], left(mask), strict=True):
            kept = mask.flags[layout.whole(np.arange(layout.size))][start:stop]
            size = np.abs(master[start:stop])
            assert kept.sum() == k
            assert size[kept].min() >= size[~kept].max(initial=0)
        layout = LAYOUT.within(mask)
        sizes.append(layout.size)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 6
    assert left(mask_of(layout)) == dynamic_sparsity.counts(LAYOUT, 0.1)


def mask_of(layout: Layout) -> Mask:
    assert layout.mask is not None
    return layout.mask


@given(st.integers(0, 999))
def test_feddst_keeps_what_most_examples_vote_for(seed: int) -> None:
    layout, draw = LAYOUT.within(FIRST), np.random.default_rng(seed)
    schedule = Sparsity("feddst", drop_fraction=0.4).schedule(FIRST, 50)
    request = schedule.vote_request(10)
    assert request is not None and schedule.vote_request(11) is None and schedule.vote_request(50) is None
    ballot, master = Ballot(layout, request), normal(layout.size, seed)
    by_hand = np.zeros(N)
    for number in range(4):
        wish = dynamic_sparsity.drop_and_grow(
            normal(layout.size, seed + number), normal(N, number), layout, request.drop, request.grow
        )
        vote, weight = position_set.pack(wish.positions, N, FIRST.positions), float(draw.integers(1, 50))
        ballot.add(ballot.read(vote), weight)
        by_hand += weight * wish.flags
    after = schedule.after(10, master, layout, ballot)
    assert after is not None and left(after) == left(FIRST)
    for start, stop in zip(LAYOUT.offsets[:-1], LAYOUT.offsets[1:], strict=True):
        there = after.flags[start:stop]
        assert by_hand[start:stop][there].min() >= by_hand[start:stop][~there].max(initial=0) - 1e-4 * ballot.weight
    assert schedule.after(10, master, layout, Ballot(layout, request)) is None  # nobody voted


def test_rigl_drops_by_the_master_and_grows_by_votes() -> None:
    layout = LAYOUT.within(FIRST)
    schedule = Sparsity("rigl", drop_fraction=0.4).schedule(FIRST, 50)
    request = schedule.vote_request(5)
    assert request is not None and request.drop == 0
    ballot, master, gradient = Ballot(layout, request), normal(layout.size, 1), normal(N, 2)
    wish = dynamic_sparsity.drop_and_grow(master, gradient, layout, 0.0, request.grow)
    vote = position_set.pack(wish.positions, N, FIRST.positions)
    assert not (FIRST.flags & ~wish.flags).any()
    ballot.add(ballot.read(vote), 3.0)
    expected = dynamic_sparsity.drop_and_grow(master, gradient, layout, request.grow, request.grow)
    assert schedule.after(5, master, layout, ballot) == expected  # one voter: plain RigL


def test_a_vote_for_more_than_was_asked_is_refused() -> None:
    layout = LAYOUT.within(FIRST)
    ballot = Ballot(layout, VoteRequest(0.1, 0.1))
    for bad in (np.arange(N), FIRST.positions[::2], np.flatnonzero(~FIRST.flags)):
        with pytest.raises(errors.InvalidPositions, match="more weights than it was asked"):
            ballot.read(position_set.pack(bad, N))
    with pytest.raises(errors.SizeMismatch):
        ballot.read(position_set.pack(FIRST.positions, N + 1))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"method": "rigl", "every": 0}, "every"),
        ({"method": "rigl", "end": 0}, "end"),
        ({"method": "rigl", "drop_fraction": 0.0}, "drop_fraction"),
        ({"method": "rigl", "begin": 5}, "begin has no meaning for method rigl"),
        ({"method": "gradual", "density": 1.1}, "density"),
        ({"method": "erk", "scope": "global"}, "scope global has no meaning for method erk"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=rf"^Sparsity: .*{why}"):
        Sparsity(**bad)


def arrays() -> ArrayRecord:
    return records.from_numpy(flatten.unflatten(normal(N, 9), LAYOUT))


RULES = {
    "momentum": optimizers.sgd(1.0, 0.9), "adam": optimizers.adam(), "yogi": optimizers.yogi(),
    "adagrad": optimizers.adagrad(),
    "sgd": optimizers.sgd(), "majority": optimizers.majority_vote(0.1),
}  # fmt: skip


@pytest.mark.parametrize("downlink", [None, Downlink(0.2)], ids=["whole", "deltas"])
@pytest.mark.parametrize("rule", RULES)
def test_master_and_optimizer_follow_the_mask_and_come_back_from_a_checkpoint(
    rule: str, downlink: Downlink | None
) -> None:
    """What survives steps on as in a model whose mask has never changed; what is new begins at zero."""
    second = dynamic_sparsity.random_mask(LAYOUT, 0.3, 2, "layer")

    def fresh() -> GlobalModel:
        return GlobalModel(arrays(), LAYOUT, RULES[rule], downlink, 0.5, FIRST)

    model, plain = fresh(), fresh()
    update, later = normal(FIRST.count, 3), normal(N, 4)
    model.step(update, {}, next_mask=lambda master, layout: second)
    plain.step(update, {})
    move = LAYOUT.within(FIRST).change_to(LAYOUT.within(second))
    assert (model.masks.version, plain.masks.version, model.layout.mask) == (2, 1, second)
    np.testing.assert_array_equal(model.master, move.apply(plain.master))
    model.step(later[second.flags], {})
    plain.step(later[FIRST.flags], {})
    np.testing.assert_array_equal(model.master[move.destinations], plain.master[move.survivors])
    for published in (model.arrays, model.published):
        assert not flatten.flatten(records.to_numpy(published), LAYOUT)[~second.flags].any()
    again = fresh()
    again.restore(state.unpack(state.pack({"model": model.state()})).part("model", ModelState))
    for one in (model, again):
        one.step(later[second.flags], {}, next_mask=lambda master, layout: FIRST)
        one.step(later[FIRST.flags], {})
    assert model.master.tobytes() == again.master.tobytes() and model.masks.version == again.masks.version == 3
    for first, other in zip(model.published.values(), again.published.values(), strict=True):
        assert first.data == other.data
    for known in (None, 1, 2, 3):
        assert model.masks.coded(known) == again.masks.coded(known)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = GlobalModel(arrays(), LAYOUT, optimizers.sgd(), mask=FIRST)
    other = Layout((TensorSpec("a", (20, 10), "float32"),))
    named = records.from_numpy({"a": np.zeros((20, 10), np.float32)})
    with pytest.raises(CheckpointError, match="another model"):
        GlobalModel(named, other, optimizers.sgd()).restore(model.state())


def test_a_mask_goes_down_whole_or_as_what_has_changed() -> None:
    assert MaskHistory(None).coded(None) is None
    history, masks = MaskHistory(FIRST), [FIRST]
    for _ in range(KEPT + 2):
        flags = masks[-1].flags.copy()
        flags[[int(np.flatnonzero(flags)[3]), int(np.flatnonzero(~flags)[5])]] ^= True
        masks.append(Mask.of(flags))
        history.change(masks[-1])
    newest = masks[-1]
    assert history.version == len(masks) and history.coded(len(masks)) == b""
    whole = history.coded(None)
    assert whole is not None
    assert history.coded(1) == whole  # too long ago: that mask is not kept
    for known in range(len(masks) - KEPT + 1, len(masks)):
        coded = history.coded(known)
        assert coded is not None and len(coded) < 0.7 * len(whole)
        np.testing.assert_array_equal(position_set.unpack(coded, N, masks[known - 1].positions), newest.positions)
    np.testing.assert_array_equal(position_set.unpack(whole, N), newest.positions)
