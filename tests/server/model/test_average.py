"""The mean of the models of a run, against the plain formula, and in a run."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import records
from fedpress.server.checkpoint import state
from fedpress.server.model.average import Average, RunningMean
from fedpress.server.model.versions import Downlink
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid

MODELS = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=30)


@given(models=MODELS, decay=st.floats(0.01, 0.99), cut=st.integers(0, 30))
def test_the_mean_is_that_of_the_plain_formula_also_after_a_restart(
    models: list[list[float]], decay: float, cut: int
) -> None:
    average = Average(decay)
    for number, model in enumerate(models):
        if number == cut:
            stored = state.unpack(state.pack({"average": average.running}))
            average = Average(decay)
            average.running = stored.part("average", RunningMean)
        average.add({"w": np.array(model, np.float32), "count": np.array(number, np.int64)})
    weights = decay ** np.arange(len(models))[::-1]
    expected = weights @ np.array(models) / weights.sum()
    np.testing.assert_allclose(average.arrays["w"], expected, atol=1e-3)
    assert average.arrays["w"].dtype == np.float32
    assert average.arrays["count"] == len(models) - 1


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        Average(decay)


def test_clients_train_from_what_they_hold_and_the_mean_is_what_is_evaluated_and_returned() -> None:
    initial = {
        "weight": np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32),
        "norm.running_mean": np.zeros(4, np.float32),
        "norm.num_batches_tracked": np.array(5, np.int64),
    }

    def run(averaging: float) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        evaluated: list[np.ndarray] = []

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            evaluated.append(records.to_numpy(arrays)["weight"])
            return MetricRecord({"round": server_round})

        strategy = SparseFed(fraction_evaluate=0.0, downlink=Downlink(0.05), averaging=averaging)
        with InlineGrid("tests.apps.faulty_client:app", clients=3, workers=1) as grid:
            result = strategy.start(grid, records.from_numpy(initial), num_rounds=4, evaluate_fn=evaluate)
        return evaluated, records.to_numpy(result.arrays)["weight"], records.to_numpy(strategy.model.arrays)["weight"]

    held, last, _ = run(0.0)
    means, mean, newest = run(0.5)
    np.testing.assert_array_equal(newest, last)  # what clients hold does not depend on the averaging
    average = Average(0.5)
    for number in range(1, 5):
        average.add({"weight": held[number]})
        np.testing.assert_array_equal(means[number], average.arrays["weight"])
    np.testing.assert_array_equal(mean, means[-1])
    assert not np.array_equal(mean, last)
