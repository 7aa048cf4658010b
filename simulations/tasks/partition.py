"""Partition of the training data among clients.

Parts of uneven, natural sizes come from flwr-datasets' partitioners, run on an in-memory data set (nothing is
downloaded). Parts of equal size with skewed labels, which these do not offer, are drawn here.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.settings import STRICT, Field, Positive, Settings, dataclass

Kind = Literal["iid", "dirichlet", "labels", "natural"]
Sizes = Literal["natural", "equal"]
Indices = NDArray[np.int64]

ATTEMPTS = 20
"""Draws of a partition without an empty client before the error."""


class PartitionError(FedpressError, ValueError):
    """The training data cannot be partitioned as asked."""


@dataclass(frozen=True, config=STRICT)
class Partition(Settings):
    """Partition of the training data among clients.

    Kinds: "iid": at random. "dirichlet": label skew after Yurochkin et al. (2019) for natural sizes (each label is
    divided among the clients by Dir(alpha)) and after Hsu et al. (2019) for equal ones (each client draws its mix of
    labels from Dir(alpha)). "labels": each client has few labels, after McMahan et al. (2017); with equal sizes
    it may get one or two more where its own have run out. "natural": each client is one of the data's own groups;
    nothing is drawn.

    Raises:
        ValueError: A value is out of range, or groups are to be of equal size.
    """

    kind: Kind = Field(
        default="dirichlet",
        description="iid: at random; dirichlet: skewed labels; labels: few labels for each client; natural: by the"
        " task's own groups, a client is a book of `text`.",
    )
    alpha: Positive = Field(
        default=0.5, description="Dirichlet concentration: 0.1 is very skewed, 100 is close to iid."
    )
    labels_per_client: int = Field(default=2, ge=1, description="How many labels a client has, for kind labels.")
    sizes: Sizes = Field(
        default="natural", description="natural: as the draw falls, uneven; equal: N // clients examples for everyone."
    )

    def __post_init__(self) -> None:
        if self.kind == "natural" and self.sizes == "equal":
            raise ValueError("sizes: equal does not go with kind natural, whose groups keep their own sizes")


def partition(
    targets: Indices, clients: int, settings: Partition, *, groups: Indices | None = None, seed: int = 0
) -> list[Indices]:
    """Deal out the training examples to the clients.

    No client is empty and no example is dealt twice. With sizes "natural" every example is dealt; with "equal" each
    client has exactly N // clients examples, and the remainder is left out.

    Args:
        targets: Label of each training example, (N,); for "iid" and "natural" also sequences, (N, L).
        clients: Number of parts.
        settings: Kind and sizes.
        groups: Group of each training example, (N,), for kind "natural".
        seed: Of all draws.

    Returns:
        One index array for each client, in a shuffled order (a group's: ascending).

    Raises:
        PartitionError: More clients than examples, more labels than there are, or no draw without an empty client;
            labels asked of sequences; no groups, or another number of them than clients.
    """
    kind, labels_per_client = settings.kind, settings.labels_per_client
    if kind == "natural":
        return _groups(groups, clients)
    targets = np.asarray(targets, dtype=np.int64)
    if targets.ndim > 1 and kind != "iid":
        raise PartitionError(
            f"partition.kind: {kind!r} goes by the label of each example, but the task's targets are sequences of"
            f" {targets[0].size} labels; use natural (by the task's own groups) or iid"
        )
    if clients > len(targets):
        raise PartitionError(
            f"clients: {clients} clients cannot share {len(targets)} training examples; each needs at least one"
        )
    labels = len(np.unique(targets))
    if kind == "labels" and labels_per_client > labels:
        raise PartitionError(f"partition.labels_per_client: got {labels_per_client}, but the data has {labels} labels")
    deal = _equal if settings.sizes == "equal" else _natural
    return deal(targets, clients, kind, settings.alpha, labels_per_client, seed)


def _groups(groups: Indices | None, clients: int) -> list[Indices]:
    if groups is None:
        raise PartitionError("partition.kind: 'natural', but the task has no groups; use iid, dirichlet or labels")
    owners = np.unique(groups)
    if clients != len(owners):
        raise PartitionError(
            f"clients: got {clients}, but the data has {len(owners)} groups and partition.kind natural gives each a"
            f" client; write clients: {len(owners)}"
        )
    return [np.flatnonzero(groups == owner).astype(np.int64) for owner in owners]


def _natural(
    targets: Indices, clients: int, kind: Kind, alpha: float, labels_per_client: int, seed: int
) -> list[Indices]:
    # The partitioners deal out a label in the order of the data, so that order is drawn first.
    order = np.random.default_rng(seeds.derive("partition", seed, "order")).permutation(len(targets))
    if kind == "iid":  # as their IidPartitioner does, which takes a millisecond for each client
        return np.array_split(order.astype(np.int64), clients)
    # Imported here: it takes two to three seconds, and only skewed labels of natural sizes need it.
    import datasets
    from flwr_datasets import partitioner

    table = datasets.Dataset.from_dict({"index": order, "label": targets[order]})
    problem = ""
    for attempt in range(ATTEMPTS):
        drawn = seeds.derive("partition", seed, kind, attempt)
        made: Any
        if kind == "dirichlet":
            made = partitioner.DirichletPartitioner(clients, "label", alpha, min_partition_size=1, seed=drawn)
        else:
            made = partitioner.PathologicalPartitioner(
                clients, "label", labels_per_client, class_assignment_mode="first-deterministic", seed=drawn
            )
        made.dataset = table
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they advise another draw, which follows
                parts = [np.asarray(made.load_partition(client)["index"], np.int64) for client in range(clients)]
        except ValueError as error:
            problem = str(error)
            continue
        if all(len(part) for part in parts) and sum(map(len, parts)) == len(targets):
            return parts
        problem = "a client was left empty, or a label without a client"
    raise PartitionError(
        f"partition: no draw in {ATTEMPTS} gives each of {clients} clients an example (kind {kind!r}, alpha {alpha},"
        f" labels_per_client {labels_per_client}, {len(targets)} examples); use fewer clients, a larger alpha or"
        f" `sizes: equal`. The last attempt said: {problem}"
    )


def _equal(
    targets: Indices, clients: int, kind: Kind, alpha: float, labels_per_client: int, seed: int
) -> list[Indices]:
    draw = np.random.default_rng(seeds.derive("partition", seed, kind, "equal"))
    size = len(targets) // clients
    if kind == "iid":
        return np.split(draw.permutation(len(targets))[: size * clients].astype(np.int64), clients)
    values = np.unique(targets)
    stock = [draw.permutation(np.flatnonzero(targets == value)) for value in values]
    left = np.array([len(indices) for indices in stock])
    if kind == "dirichlet":
        mixes = draw.dirichlet(np.full(len(values), alpha), clients)
    else:
        mixes = _label_mixes(clients, len(values), labels_per_client, draw)
    # Clients choose in a drawn order: the last ones may find that a label has run out.
    counts = np.zeros((clients, len(values)), dtype=np.int64)
    for client in draw.permutation(clients):
        counts[client] = _take(mixes[client], size, left, draw)
        left -= counts[client]
    ends = np.cumsum(counts, axis=0)
    return [
        draw.permutation(
            np.concatenate(
                [pile[end - count : end] for pile, end, count in zip(stock, ends[client], counts[client], strict=True)]
            )
        )
        for client in range(clients)
    ]


def _label_mixes(clients: int, labels: int, labels_per_client: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Give each client its labels in equal shares; all labels are used equally often, give or take one."""
    mixes = np.zeros((clients, labels))
    used = np.zeros(labels)
    for client in range(clients):
        chosen = np.lexsort((draw.random(labels), used))[:labels_per_client]
        used[chosen] += 1
        mixes[client, chosen] = 1 / labels_per_client
    return mixes


def _take(mix: NDArray[np.float64], size: int, left: Indices, draw: np.random.Generator) -> Indices:
    """Draw `size` labels from the mix without exceeding `left`, and return the count of each label."""
    taken = np.zeros_like(left)
    while (open_ := size - taken.sum()) > 0:
        available = left - taken
        weights = np.where(available > 0, mix, 0.0)
        if weights.sum() <= 0:
            weights = available.astype(np.float64)  # the client's own labels have run out: the commonest ones left
        taken += np.minimum(draw.multinomial(open_, weights / weights.sum()), available)
    return taken
