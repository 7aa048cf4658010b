"""Server optimizers against the rules run by hand."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fedpress.compression.encoders import ef21, encoder, selection
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.server.model import optimizers
from fedpress.server.rounds import aggregate

UPDATES = [np.random.default_rng(i).standard_normal(50).astype(np.float32) for i in range(4)]


def run(rule: optimizers.ServerOptimizer) -> np.ndarray:
    master = np.linspace(-1, 1, 50).astype(np.float32)
    optimizer = rule(master)
    for update in UPDATES:
        optimizer.step(update.copy())
    return master


def start() -> np.ndarray:
    return np.linspace(-1, 1, 50).astype(np.float32)


def test_sgd_with_rate_one_adds_the_mean_update() -> None:
    np.testing.assert_allclose(run(optimizers.sgd(1.0)), start() + sum(UPDATES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "torchs"),
    [
        (optimizers.sgd(0.3), partial(torch.optim.SGD, lr=0.3)),
        (optimizers.sgd(0.3, 0.9), partial(torch.optim.SGD, lr=0.3, momentum=0.9)),
        (optimizers.adam(0.02, 0.8, 0.95, 2e-3), partial(torch.optim.Adam, lr=0.02, betas=(0.8, 0.95), eps=2e-3)),
        (optimizers.adagrad(0.1, 5e-3), partial(torch.optim.Adagrad, lr=0.1, eps=5e-3)),
    ],
    ids=["sgd", "momentum", "adam", "adagrad"],
)
def test_steps_are_those_of_torch_bit_by_bit(
    rule: optimizers.ServerOptimizer, torchs: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
) -> None:
    expected = torch.from_numpy(start())
    optimizer = torchs([expected])
    for update in UPDATES:
        expected.grad = torch.from_numpy(-update)
        optimizer.step()
    assert run(rule).tobytes() == expected.numpy().tobytes()


def test_a_server_does_without_the_compiler_of_torch() -> None:
    """Importing it costs each process a second and 70 MB."""
    code = (
        "import sys, numpy as np; from fedpress.server import app; from fedpress.server.model import optimizers\n"
        "for rule in optimizers.sgd(1.0, 0.9), optimizers.adam(), optimizers.yogi(), optimizers.adagrad():\n"
        "    rule(np.zeros(3, np.float32)).step(np.ones(3, np.float32))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_momentum_is_fedavgm() -> None:
    by_hand, velocity = start(), np.zeros(50, np.float32)
    for update in UPDATES:
        velocity = 0.9 * velocity + update
        by_hand += 0.3 * velocity
    np.testing.assert_allclose(run(optimizers.sgd(0.3, momentum=0.9)), by_hand, rtol=1e-5, atol=1e-6)


def test_yogi_is_algorithm_2() -> None:
    by_hand, mean, variance = start(), np.zeros(50), np.full(50, 1e-6)
    for update in UPDATES:
        mean = 0.9 * mean + 0.1 * update
        variance -= 0.01 * update**2 * np.sign(variance - update**2)
        by_hand += 0.05 * mean / (np.sqrt(variance) + 1e-3)
    np.testing.assert_allclose(run(optimizers.yogi(0.05)), by_hand, rtol=1e-4, atol=1e-5)


def test_adagrad_sums_squares() -> None:
    by_hand, squares = start(), np.zeros(50)
    for update in UPDATES:
        squares += update**2
        by_hand += 0.1 * update / (np.sqrt(squares) + 1e-3)
    np.testing.assert_allclose(run(optimizers.adagrad(0.1)), by_hand, rtol=1e-4, atol=1e-5)


def test_adam_takes_steps_of_its_learning_rate_along_a_steady_update() -> None:
    master = np.zeros(3, np.float32)
    optimizer = optimizers.adam(0.01)(master)
    for _ in range(5):
        optimizer.step(np.array([5, -5, 0], np.float32))
    np.testing.assert_allclose(master, [0.05, -0.05, 0], rtol=1e-2)


def test_the_majority_decides_and_every_step_is_as_long() -> None:
    by_hand = start()
    for update in UPDATES:
        by_hand += np.float32(0.01) * np.sign(update)
    np.testing.assert_allclose(run(optimizers.majority_vote(0.01)), by_hand, rtol=1e-5, atol=1e-6)
    master = np.ones(3, np.float32)
    votes = np.array([[1, 1, -1], [1, -1, -1], [-1, 1, -1], [1, -1, -1]], np.float32)
    optimizers.majority_vote(0.5)(master).step(votes.mean(axis=0))
    assert master.tolist() == [1.5, 1.0, 0.5]  # three to one, a tie, all against


def test_ef21_steps_along_the_sum() -> None:
    by_hand = start()
    for round in range(len(UPDATES)):
        by_hand += 0.5 * np.sum(UPDATES[: round + 1], axis=0)
    np.testing.assert_allclose(run(optimizers.ef21(0.5)), by_hand, rtol=1e-5, atol=1e-5)


def test_ef21_gets_to_the_minimum_where_top_k_alone_does_not() -> None:
    """Three clients pull so hard in directions of their own that top-1 never says where they agree.

    Beznosikov et al. 2020, "On Biased Compression for Distributed Learning", example 1: the payloads cancel out.
    """
    shared = SideInfo(Layout((TensorSpec("weight", (3,), "float32"),)))
    pulls = np.array([[-3, 2, 2], [2, -3, 2], [2, 2, -3]], np.float32)

    def distance(chosen: Encoder[Any], rule: optimizers.ServerOptimizer) -> float:
        master = np.ones(3, np.float32)
        optimizer, states = rule(master), [chosen.init(shared.layout) for _ in pulls]
        for _ in range(1500):
            total = aggregate.Accumulator(3)
            for client, pull in enumerate(pulls):
                update = np.float32(-0.02) * (pull @ master) * pull - np.float32(0.01) * master
                payload, _, states[client] = chosen.encode(update, states[client], shared, 0)
                states[client] = chosen.acknowledge(states[client], True)
                total.add(encoder.decode(payload, shared), 1.0)
            optimizer.step(total.mean())
        return float(np.abs(master).max())

    top = encoder.sparse(selection.top_k(k=1), values.FLOAT32)
    assert distance(top, optimizers.sgd(1.0)) > 1
    assert distance(ef21.ef21(top), optimizers.ef21(0.5)) < 0.01


@pytest.mark.parametrize("rule", [optimizers.adam, optimizers.yogi, optimizers.adagrad])
def test_a_small_epsilon_is_refused(rule: Callable[..., optimizers.ServerOptimizer]) -> None:
    with pytest.raises(ValueError, match="at least 0.001, and is 1e-08"):
        rule(epsilon=1e-8)


def test_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive, and is 0"):
        optimizers.sgd(0)
    with pytest.raises(ValueError, match="momentum must be in"):
        optimizers.sgd(1.0, momentum=1.0)
