"""A round that no node answers is asked again where the caller waits for devices, and counts where it does not."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Result

from fedpress.compression import seeds
from fedpress.compression.messages import records
from fedpress.server.rounds import sampling
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid

INITIAL = {
    "weight": np.zeros(40, np.float32),
    "norm.running_mean": np.zeros(4, np.float32),
    "norm.num_batches_tracked": np.array(0, np.int64),
}
DEADLINE = 10.0


class OfflineFleet(InlineGrid):
    """The inline engine with a link that is down until a moment of the virtual clock."""

    def __init__(self, until: float, **options: Any) -> None:
        super().__init__("tests.apps.faulty_client:app", clients=4, workers=1, **options)
        self._down_until = until

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        return replies if self.clock.now() >= self._down_until else []


def strategy() -> SparseFed:
    return SparseFed(fraction_train=0.5, fraction_evaluate=0.0, rounds=Rounds(deadline=DEADLINE), seed=3)


def test_a_silent_round_is_asked_again_after_growing_pauses_and_of_other_nodes() -> None:
    waited: list[tuple[int, int, float]] = []
    with OfflineFleet(until=100.0) as grid:

        def on_silence(number: int, attempts: int) -> None:
            waited.append((number, attempts, grid.clock.now()))

        fed = strategy()
        rounds = list(fed.run(grid, Result(arrays=records.from_numpy(INITIAL)), 3, on_silence=on_silence))
    assert [summary.round for summary in rounds] == [1, 2, 3] and all(summary.replies == 2 for summary in rounds)
    assert [(number, attempts) for number, attempts, _ in waited] == [(1, n) for n in range(1, len(waited) + 1)]
    times = [at for _, _, at in waited]
    assert times[0] == DEADLINE and [later - at for at, later in zip(times, times[1:], strict=False)] == [
        DEADLINE + 2.0**attempts for attempts in range(1, len(times))
    ]
    asked = {refusal.node for refusal in fed.refusals if refusal.round == 1}
    assert len(asked) > 2  # not the same two over and over


def test_without_it_silent_rounds_count() -> None:
    with OfflineFleet(until=3 * DEADLINE) as grid:
        result = Result(arrays=records.from_numpy(INITIAL))
        rounds = list(strategy().run(grid, result, 5))
    assert [summary.replies for summary in rounds] == [0, 0, 0, 2, 2]


def test_an_error_is_an_answer() -> None:
    broken = [3, 4]  # nodes whose training ends in NaN, or raises
    draws = {seed: sampling.draw([1, 2, 3, 4], 2, seeds.derive("default", seed, 1, "train")) for seed in range(100)}
    seed = next(seed for seed, drawn in draws.items() if drawn == broken)
    waited: list[int] = []
    with InlineGrid("tests.apps.faulty_client:app", clients=4, workers=1, run_config={"faults": True}) as grid:
        fed = SparseFed(fraction_train=0.5, fraction_evaluate=0.0, seed=seed)
        result = Result(arrays=records.from_numpy(INITIAL))
        rounds = list(fed.run(grid, result, 1, on_silence=lambda number, attempts: waited.append(number)))
    assert not waited and [summary.replies for summary in rounds] == [0]
    assert [refusal.node for refusal in fed.refusals] == broken
