"""Fashion-MNIST with few labels a client, the same to each as in Flower's baseline niid_bench, whose draw this repeats.

docs/results/benchmarks.md has the command.
"""

import numpy as np
from numpy.typing import NDArray

from fedpress.simulations.tasks.fashion_mnist import FashionMNIST

CLIENTS = CLASSES = 10
SEED = 42


class Drawn(FashionMNIST):
    """Client i has label i and others at random; a label's examples are split evenly between those who have it.

    Args:
        labels: that each client has.
    """

    name = "fashion-mnist"

    def __init__(self, labels: int = 2) -> None:
        super().__init__(model="lenet")
        self.labels = labels

    def groups(self) -> NDArray[np.int64]:
        """The client of each training example, (N,)."""
        draw = np.random.default_rng(SEED)
        held: list[list[int]] = []
        for client in range(CLIENTS):
            own = [client % CLASSES]
            while len(own) < self.labels:
                other = int(draw.choice(CLASSES))
                own += [] if other in own else [other]
            held.append(own)
        targets = self.data().train.targets.numpy()
        found = np.empty(len(targets), np.int64)
        for label in range(CLASSES):
            holders = [client for client in range(CLIENTS) if label in held[client]]
            positions = draw.permutation(np.flatnonzero(targets == label))
            for client, part in zip(holders, np.array_split(positions, len(holders)), strict=True):
                found[part] = client
        return found
