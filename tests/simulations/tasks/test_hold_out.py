"""Held-out parts: disjoint, covering, each label in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.tasks.hold_out import stratified


@given(
    targets=st.lists(st.integers(0, 5), min_size=10, max_size=300).map(lambda x: np.array(x, np.int64)),
    shares=st.lists(st.floats(0, 0.3), min_size=1, max_size=3),
    seed=st.integers(0, 2**62),
)
def test_parts_partition_the_data_and_hold_each_labels_share(targets, shares, seed):
    sizes = {f"part {number}": int(share * len(targets)) for number, share in enumerate(shares)}
    parts = stratified(targets, sizes, seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(targets)))
    left = targets
    for part, size in sizes.items():
        assert len(parts[part]) == size
        for label in np.unique(targets):
            share = size * np.mean(left == label)
            assert abs(np.sum(targets[parts[part]] == label) - share) <= 1.0 + 1e-9
        kept = np.ones(len(targets), bool)
        for name in list(sizes)[: list(sizes).index(part) + 1]:
            kept[parts[name]] = False
        left = targets[kept]


def test_the_seed_decides():
    targets = np.arange(100) % 7
    assert np.array_equal(stratified(targets, {"test": 20}, 1)["test"], stratified(targets, {"test": 20}, 1)["test"])
    assert not np.array_equal(
        stratified(targets, {"test": 20}, 1)["test"], stratified(targets, {"test": 20}, 2)["test"]
    )


def test_something_must_be_left_to_train_on():
    with pytest.raises(ValueError, match="cannot hold out 10 of 10"):
        stratified(np.zeros(10, np.int64), {"test": 4, "proxy": 6}, 0)
