"""SparseFed on a real grid with real worker processes: replies that count, are refused, and are billed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from tests.apps import faulty_client

from fedpress.compression.messages import records
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import payloads
from fedpress.server.model import optimizers
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.outcome import RunFailed
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.conditions.network import Network, NetworkSettings
from fedpress.simulations.engines.inline import InlineGrid

SIZE = 64


def initial_arrays() -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.zeros(SIZE, np.float32),
            "norm.running_mean": np.zeros(4, np.float32),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


class RecordingGrid(InlineGrid):
    """The inline grid, which also keeps the size of everything that passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.passed = {"up": 0, "down": 0}
        super().__init__(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.passed["down"] += sum(records.serialized_size(message) for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.passed["up"] += sum(records.serialized_size(reply) for reply in replies)
        return replies


def test_bad_replies_cost_their_clients_the_round_and_are_counted_by_reason() -> None:
    rounds: list[RoundSummary] = []
    accepted: list[tuple[int, int, bytes]] = []
    strategy = SparseFed(
        fraction_evaluate=0.0, on_round=rounds.append, on_accepted=lambda *reply: accepted.append(reply)
    )
    clients = len(faulty_client.FAULTS)
    with RecordingGrid("tests.apps.faulty_client:app", clients=clients, workers=2, run_config={"faults": True}) as grid:
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
        passed = grid.passed
    expected = {
        "client error": 1,  # nan: refused by the client's own encoder
        "error": 2,  # raises, dies
        "malformed": 4,  # dense, weight, no weight, foreign
        "undecodable": 3,  # truncated, buffers, infinite payload
        "wrong ticket": 1,
        "wrong version": 1,
        "no model": 1,  # asks for it again and again
    }
    assert [summary.reasons for summary in rounds] == [expected, expected]
    assert [summary.replies for summary in rounds] == [2, 2]
    assert [reply[:2] for reply in accepted] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    said = [payloads.decode(payload, SideInfo(strategy.model.layout)).dense() for _, _, payload in accepted]
    np.testing.assert_array_equal(said, np.full((4, SIZE), faulty_client.STEP, np.float32))
    final = records.to_numpy(result.arrays)
    np.testing.assert_array_equal(final["weight"], np.full(SIZE, 2 * faulty_client.STEP, np.float32))
    np.testing.assert_array_equal(final["norm.running_mean"], np.full(4, 2, np.float32))
    assert final["norm.num_batches_tracked"] == 5 + 2 + 2  # the maximum over nodes 1 and 2, twice
    assert final["norm.num_batches_tracked"].dtype == np.int64
    details = {refusal.node - 1: refusal.detail for refusal in strategy.refusals}
    assert "mods=[compress" in details[faulty_client.FAULTS.index("dense")]
    assert "this client always fails" in details[faulty_client.FAULTS.index("raises")]
    metrics = result.train_metrics_clientapp[1]
    assert (metrics["fedpress.replies"], metrics["fedpress.refused"], metrics["fedpress.refused-undecodable"]) == (
        2,
        13,
        3,
    )
    # the ledger's law, refused and failed replies included
    assert strategy.ledger.total(direction="down") == passed["down"]
    assert strategy.ledger.total(direction="up") == passed["up"]
    assert passed["up"] > 0


def test_a_doubled_reply_counts_once() -> None:
    strategy = SparseFed(fraction_evaluate=0.0)
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1) as grid:
        messages = strategy.configure_train(1, initial_arrays(), ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
    _, metrics = strategy.aggregate_train(1, [*replies, replies[0]])
    assert metrics is not None
    assert (metrics["fedpress.replies"], metrics["fedpress.refused"], metrics["fedpress.refused-wrong-ticket"]) == (
        2,
        1,
        1,
    )


def test_a_round_without_enough_replies_changes_nothing_and_returns_the_mass() -> None:
    accepted: list[tuple[int, int]] = []
    strategy = SparseFed(
        fraction_evaluate=0.0, rounds=Rounds(min_replies=3), on_accepted=lambda *reply: accepted.append(reply[:2])
    )
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1) as grid:
        with pytest.raises(RunFailed, match="2 replies, 3 are needed for a step"):
            strategy.start(grid, initial_arrays(), num_rounds=1)
        assert {refusal.reason for refusal in strategy.refusals} == {"too few"}
        np.testing.assert_array_equal(records.to_numpy(strategy.model.arrays)["weight"], np.zeros(SIZE))
        assert accepted == []
        strategy.federation.rounds = Rounds()
        result = strategy.start(grid, strategy.model.arrays, num_rounds=1)
    # this round's step and the refused one's, from the residuals
    np.testing.assert_array_equal(records.to_numpy(result.arrays)["weight"], np.full(SIZE, 2 * faulty_client.STEP))


def slow_network(dropout: float = 0.0) -> Network:
    return Network(NetworkSettings(up_mbit=1.0, down_mbit=1.0, latency=0.1, rate_sigma=1.0, dropout=dropout), seed=3)


def test_a_round_closes_at_the_deadline_of_the_virtual_clock_and_late_replies_are_billed_but_not_counted() -> None:
    network = slow_network()
    times = sorted(network.seconds(client=c, round=1, down_bytes=900, examples=100, up_bytes=500) for c in range(6))
    deadline = (times[2] + times[3]) / 2
    rounds: list[RoundSummary] = []
    strategy = SparseFed(fraction_evaluate=0.0, rounds=Rounds(deadline=deadline), on_round=rounds.append)
    with RecordingGrid(
        "tests.apps.faulty_client:app", clients=6, workers=2, network=network, examples=lambda client: 100
    ) as grid:
        strategy.start(grid, initial_arrays(), num_rounds=4)
        passed = grid.passed
    assert (rounds[0].replies, rounds[0].reasons) == (3, {"late": 3})
    assert rounds[0].seconds == pytest.approx(deadline)
    assert strategy.ledger.total(direction="up") == passed["up"]
    assert len(strategy.ledger.rows) > 0
    up_rows = {(row.round, row.node) for row in strategy.ledger.rows if row.direction == "up"}
    assert len([node for number, node in up_rows if number == 1]) > 3  # the late ones came in a later round


def test_over_selection_takes_the_first_replies_by_virtual_time_whatever_the_number_of_workers() -> None:
    def replied(workers: int) -> list[tuple[int, int]]:
        strategy = SparseFed(fraction_train=0.5, fraction_evaluate=0.0, rounds=Rounds(over_selection=2))
        with InlineGrid(
            "tests.apps.faulty_client:app",
            clients=8,
            workers=workers,
            network=slow_network(),
            examples=lambda client: 100,
        ) as grid:
            result = strategy.start(grid, initial_arrays(), num_rounds=2)
        assert [metrics["fedpress.replies"] for metrics in result.train_metrics_clientapp.values()] == [4, 4]
        return [(refusal.round, refusal.node) for refusal in strategy.refusals]

    late = replied(1)
    assert len(late) == 4
    assert replied(2) == late


def test_clients_that_never_answer_do_not_hold_the_round_up() -> None:
    strategy = SparseFed(fraction_evaluate=0.0, rounds=Rounds(deadline=1000.0))
    with InlineGrid(
        "tests.apps.faulty_client:app",
        clients=8,
        workers=1,
        network=slow_network(dropout=0.5),
        examples=lambda client: 100,
    ) as grid:
        result = strategy.start(grid, initial_arrays(), num_rounds=3)
    replies = [metrics["fedpress.replies"] for metrics in result.train_metrics_clientapp.values()]
    assert sum(replies) + len(strategy.refusals) == 24
    assert {refusal.reason for refusal in strategy.refusals} == {"late"}


def test_a_dense_round_equals_flowers_own_fedavg(tmp_path: Path) -> None:
    with InlineGrid("tests.apps.dense_client:plain", clients=3, workers=1) as grid:
        flower = FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays(), num_rounds=3)
    with InlineGrid("tests.apps.dense_client:compressed", clients=3, workers=1) as grid:
        ours = SparseFed(fraction_evaluate=0.0).start(grid, initial_arrays(), num_rounds=3)
    theirs, mine = records.to_numpy(flower.arrays), records.to_numpy(ours.arrays)
    np.testing.assert_allclose(mine["weight"], theirs["weight"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mine["norm.running_mean"], theirs["norm.running_mean"], rtol=1e-6, atol=1e-6)
    assert list(mine) == list(theirs)


def test_a_diverged_model_stops_the_run_with_the_likely_mistake() -> None:
    strategy = SparseFed(fraction_evaluate=0.0, optimizer=optimizers.sgd(3e38, momentum=0.9))
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1) as grid:
        with pytest.raises(FloatingPointError, match="learning rate"):
            strategy.start(grid, initial_arrays(), num_rounds=4)
