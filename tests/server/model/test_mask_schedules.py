"""Mask schedules: pruning as training goes, and masks that clients vote on."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors import layout
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.model.mask_schedules import Ballot, Sparsity, VoteRequest

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
        with pytest.raises(errors.InvalidPositions, match="more weights of a tensor than the order asked for"):
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
