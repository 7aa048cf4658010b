"""Laws of partitions: disjoint, nobody empty, all of it when sizes are natural, the same by seed."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from flwr_datasets import partitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.compression import seeds
from fedpress.simulations.tasks.partition import Partition, PartitionError, partition

GOLDEN = [
    [26, 0, 4, 21, 6, 33, 38, 1, 15, 32],
    [22, 14, 24, 19, 3, 31, 29, 28, 12, 37],
    [25, 9, 27, 20, 30, 16, 36, 2, 18, 34],
    [35, 17, 23, 39, 5, 7, 11, 8, 13, 10],
]

KINDS = ["iid", "dirichlet", "labels"]


def labels(count: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(count) % classes).astype(np.int64)


def dealt(
    targets: np.ndarray, clients: int, kind: Any, seed: int = 0, groups: Any = None, **more: Any
) -> list[np.ndarray]:
    return partition(targets, clients, Partition(kind=kind, **more), groups=groups, seed=seed)


def check(parts: list[np.ndarray], targets: np.ndarray, clients: int) -> None:
    assert len(parts) == clients
    together = np.concatenate(parts)
    assert together.dtype == np.int64
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0 and together.max() < len(targets)
    assert min(map(len, parts)) > 0


@given(
    kind=st.sampled_from(KINDS),
    clients=st.integers(1, 30),
    count=st.integers(30, 400),
    classes=st.integers(2, 10),
    alpha=st.sampled_from([1e-3, 0.1, 0.5, 10.0, 1e4]),
    seed=st.integers(0, 2**62),
)
def test_equal_parts_are_equal_and_disjoint(kind, clients, count, classes, alpha, seed):
    targets = labels(count, classes)
    parts = dealt(targets, clients, kind, alpha=alpha, labels_per_client=2, sizes="equal", seed=seed)
    check(parts, targets, clients)
    assert {len(part) for part in parts} == {count // clients}


@pytest.mark.parametrize(("count", "clients"), [(10, 10), (103, 10), (999, 7)])
def test_iid_parts_of_natural_sizes_are_those_of_flwr_datasets(count, clients):
    order = np.random.default_rng(seeds.derive("partition", 5, "order")).permutation(count)
    theirs = partitioner.IidPartitioner(clients)
    theirs.dataset = datasets.Dataset.from_dict({"index": order})
    ours = dealt(labels(count), clients, "iid", seed=5)
    assert [part.tolist() for part in ours] == [theirs.load_partition(i)["index"][:] for i in range(clients)]


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), clients=st.integers(1, 20), seed=st.integers(0, 2**62))
def test_natural_parts_cover_everything_once(kind, clients, seed):
    targets = labels(600)
    try:
        parts = dealt(targets, clients, kind, alpha=1.0, labels_per_client=3, seed=seed)
    except PartitionError:
        assert kind == "labels" and clients < 10  # too few clients to hold all ten labels
        return
    check(parts, targets, clients)
    assert sum(map(len, parts)) == len(targets)


@given(groups=st.lists(st.integers(-3, 40), min_size=1, max_size=200))
def test_groups_are_clients_whole_and_in_order(groups):
    targets, owners = np.zeros((len(groups), 5), np.int64), np.array(groups, np.int64)
    parts = dealt(targets, len(set(groups)), "natural", groups=owners)
    check(parts, targets, len(set(groups)))
    assert sum(map(len, parts)) == len(groups)
    assert [set(owners[part].tolist()) for part in parts] == [{owner} for owner in sorted(set(groups))]


@pytest.mark.parametrize("sizes", ["natural", "equal"])
def test_sequences_are_dealt_out_at_random(sizes):
    targets = labels(600).reshape(60, 10)
    parts = dealt(targets, 7, "iid", sizes=sizes, seed=1)
    check(parts, targets, 7)
    assert {len(part) for part in parts} <= {8, 9}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", ["natural", "equal"])
def test_the_seed_decides(kind, sizes):
    targets = labels(1000)

    def drawn(seed: int) -> bytes:
        return b"|".join(part.tobytes() for part in dealt(targets, 20, kind, sizes=sizes, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_golden_draw():
    # Pinned: a change here changes every published figure.
    parts = dealt(labels(40, 4), 4, "dirichlet", alpha=0.5, sizes="equal", seed=1)
    assert [part.tolist() for part in parts] == GOLDEN


@pytest.mark.parametrize("sizes", ["natural", "equal"])
def test_alpha_sets_the_skew(sizes):
    targets = labels(4000)

    def distinct(alpha: float) -> float:
        parts = dealt(targets, 20, "dirichlet", alpha=alpha, sizes=sizes, seed=1)
        shares = [np.bincount(targets[part], minlength=10) / len(part) for part in parts]
        return float(np.mean([1 / np.sum(share**2) for share in shares]))  # effective number of labels

    # The mean over Dir(alpha) of ten labels is about (10 alpha + 1) / (alpha + 1).
    assert distinct(0.1) < 3 < distinct(1.0) < 8 < distinct(100.0) <= 10


@pytest.mark.parametrize("sizes", ["natural", "equal"])
def test_few_labels_a_client(sizes):
    targets = labels(4000)
    parts = dealt(targets, 20, "labels", labels_per_client=2, sizes=sizes, seed=1)
    held = [len(np.unique(targets[part])) for part in parts]
    assert min(held) == 2
    assert np.mean(held) <= 2.5


def test_natural_iid_sizes_differ_by_one_at_most_and_labels_are_mixed():
    targets = np.sort(labels(1003))  # in the data's own order, a contiguous cut would be anything but iid
    parts = dealt(targets, 10, "iid", seed=1)
    assert {len(part) for part in parts} == {100, 101}
    assert all(len(np.unique(targets[part])) == 10 for part in parts)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"clients": 41, "kind": "iid"}, "41 clients cannot share 40 training examples"),
        ({"clients": 4, "kind": "labels", "labels_per_client": 5}, "got 5, but the data has 4 labels"),
        ({"clients": 40, "kind": "dirichlet", "alpha": 0.01}, "no draw in 20 gives each of 40 clients an example"),
        ({"clients": 1, "kind": "labels", "labels_per_client": 2}, "a label without a client"),
        ({"clients": 4, "kind": "natural"}, "the task has no groups"),
        ({"clients": 4, "kind": "natural", "groups": np.arange(40) // 8}, "got 4, .* 5 groups .* write clients: 5"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, text):
    clients, kind = arguments.pop("clients"), arguments.pop("kind")
    with pytest.raises(PartitionError, match=text):
        dealt(labels(40, 4), clients, kind, **arguments)


@pytest.mark.parametrize("kind", ["dirichlet", "labels"])
@pytest.mark.parametrize("sizes", ["natural", "equal"])
def test_labels_of_sequences_are_refused(kind, sizes):
    with pytest.raises(PartitionError, match=f"'{kind}' goes by the label of each example, .* sequences of 10 labels"):
        dealt(labels(400).reshape(40, 10), 4, kind, sizes=sizes)
