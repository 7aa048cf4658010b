"""The buffered schedule on a real grid."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from fedpress.compression.messages import records
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.conditions.network import Network, NetworkSettings
from fedpress.simulations.engines.inline import InlineGrid


@pytest.mark.parametrize(
    ("key", "bad"), [("size", 0), ("staleness_exponent", -0.5), ("staleness_exponent", math.nan), ("max_staleness", -1)]
)
def test_numbers_out_of_range_are_refused(key: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^Buffered: {key}: got "):
        Buffered(**{"size": 1, key: bad})  # type: ignore[arg-type]


def model() -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.zeros(64, np.float32),
            "norm.running_mean": np.zeros(4, np.float32),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


def run(workers: int, schedule: Buffered | None, **more: Any) -> tuple[SparseFed, list[RoundSummary], list[int]]:
    network = Network(NetworkSettings(up_mbit=1.0, down_mbit=1.0, latency=0.1, rate_sigma=1.0, dropout=0.1), seed=3)
    rounds: list[RoundSummary] = []
    at_work: list[int] = []

    class Watched(InlineGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            at_work.append(len(strategy.federation.under_way.pending))
            return super().pull_messages(message_ids)

    strategy = SparseFed(
        fraction_train=0.5, fraction_evaluate=0.0, downlink=Downlink(0.05),
        rounds=Rounds(deadline=4.0, schedule=schedule), on_round=rounds.append, **more,
    )  # fmt: skip
    with Watched(
        "tests.apps.faulty_client:app", clients=10, workers=workers, network=network, examples=lambda client: 100
    ) as grid:
        strategy.start(grid, model(), num_rounds=12)
    return strategy, rounds, at_work


def test_clients_work_all_the_time_and_the_model_steps_when_the_buffer_is_full() -> None:
    strategy, rounds, at_work = run(1, Buffered(3))
    assert [summary.replies for summary in rounds] == [3] * 12
    assert strategy.model.version == 12
    assert max(at_work) == 5 and np.mean(at_work) > 4
    assert max(summary.max_staleness or 0 for summary in rounds) >= 2
    assert {refusal.reason for refusal in strategy.refusals} <= {"late"}
    synchronous = run(1, None)[1]
    assert all(summary.staleness is None for summary in synchronous)
    buffered_rate = sum(s.replies for s in rounds) / sum(s.seconds for s in rounds)
    assert buffered_rate > 1.5 * sum(s.replies for s in synchronous) / sum(s.seconds for s in synchronous)


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    one, two = (run(workers, Buffered(3, max_staleness=1)) for workers in (1, 2))
    assert one[0].model.master.tobytes() == two[0].model.master.tobytes()
    assert one[0].refusals == two[0].refusals and {"stale", "late"} <= {r.reason for r in one[0].refusals}
    assert sorted(one[0].ledger.rows) == sorted(two[0].ledger.rows)
    assert [summary.seconds for summary in one[1]] == [summary.seconds for summary in two[1]]
