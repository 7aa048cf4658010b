"""The model goes down by deltas, on a real grid with real worker processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from fedpress.compression.messages import records
from fedpress.compression.tensors.flatten import flatten
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid

SIZE = 4000


def initial_arrays() -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.random.default_rng(1).normal(0, 0.1, SIZE).astype(np.float32),
            "norm.running_mean": np.zeros(4, np.float32),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


def strategy(**more: Any) -> SparseFed:
    return SparseFed(fraction_evaluate=0.0, downlink=Downlink(0.05), **more)


def test_clients_without_a_layout_see_the_arrays_once_and_deltas_afterwards() -> None:
    rounds: list[RoundSummary] = []
    made = strategy(on_round=rounds.append)
    with InlineGrid("tests.apps.faulty_client:app", clients=3, workers=2) as grid:
        result = made.start(grid, initial_arrays(), num_rounds=5)
    assert [summary.replies for summary in rounds] == [3] * 5
    assert rounds[0].down_bytes > 3 * 4 * SIZE
    assert all(summary.down_bytes < rounds[0].down_bytes / 10 for summary in rounds[1:])
    # Every client adds 0.5 to each weight it holds; the master follows, and held follows the master.
    held = flatten(records.to_numpy(result.arrays), made.model.layout)
    first = flatten(records.to_numpy(initial_arrays()), made.model.layout)
    moved = np.flatnonzero(np.abs(held - first) > 1e-3)
    assert 0.05 * SIZE <= len(moved) <= 0.25 * SIZE
    assert records.to_numpy(result.arrays)["norm.num_batches_tracked"] == 5 + 5 * 3  # buffers are whole, and newest


def test_the_application_gets_what_the_server_believes(tmp_path: Path) -> None:
    """A lossless upload in each round: master = held + 0.5 shows that clients trained from held, to the bit."""
    made = strategy()
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1) as grid:
        made.start(grid, initial_arrays(), num_rounds=1)
        before = flatten(records.to_numpy(made.model.arrays), made.model.layout)
        master = made.model.master.copy()
        made.start(grid, made.model.arrays, num_rounds=1)
    expected = master + ((before + np.float32(0.5)) - before)
    np.testing.assert_allclose(made.model.master, expected, atol=1e-6)


@pytest.mark.parametrize("fault", ["forgets", "damaged", "old"])
def test_a_client_whose_model_is_gone_still_takes_part(fault: str) -> None:
    rounds: list[RoundSummary] = []
    made = strategy(on_round=rounds.append)
    with InlineGrid("tests.apps.forgetful_client:app", clients=2, workers=1, run_config={"fault": fault}) as grid:
        made.start(grid, initial_arrays(), num_rounds=4)
    assert [summary.replies for summary in rounds] == [2] * 4
    assert [summary.reasons for summary in rounds] == [{}] * 4
    assert rounds[2].down_bytes > 2 * 4 * SIZE > rounds[1].down_bytes  # the whole model again, in round 3
    assert rounds[3].down_bytes < 4 * SIZE
    assert made.federation.accounting.lost_states == (2 if fault != "damaged" else 0)


def test_evaluation_goes_the_same_compressed_way() -> None:
    rounds: list[RoundSummary] = []
    made = SparseFed(fraction_evaluate=1.0, downlink=Downlink(0.05), on_round=rounds.append)
    with InlineGrid("tests.apps.evaluating_client:app", clients=2, workers=1) as grid:
        result = made.start(grid, initial_arrays(), num_rounds=3)
    for summary in rounds:
        held = records.to_numpy(summary.arrays)
        seen = result.evaluate_metrics_clientapp[summary.round]
        assert seen["sum"] == held["weight"].sum(dtype=np.float64)
        assert seen["mean"] == held["norm.running_mean"].mean() == summary.round
    assert made.ledger.total(kind="evaluate") < 4 * SIZE
