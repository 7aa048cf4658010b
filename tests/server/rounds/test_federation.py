"""The rounds of one model: a step in one piece or in two, and what a round leaves behind."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from tests.server.comparable import comparable

from fedpress.compression.messages import records
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.settings import ModelSettings
from fedpress.simulations.engines.inline import InlineGrid


def initial_arrays() -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.linspace(-1, 1, 400).astype(np.float32),
            "norm.running_mean": np.zeros(4, np.float32),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


def stepped(publish: bool) -> Federation:
    """One round of two clients."""
    federation = Federation(model=ModelSettings(downlink=Downlink(0.05)))
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1) as grid:
        messages = federation.open_orders(1, initial_arrays(), ConfigRecord(), grid)
        federation.take(1, grid.send_and_receive(messages), publish=publish)
    return federation


def test_a_step_that_is_completed_by_others_is_a_step() -> None:
    whole, halves = stepped(publish=True), stepped(publish=False)
    assert (whole.model.version, halves.model.version) == (1, 0)
    np.testing.assert_array_equal(whole.model.master, halves.model.master)
    np.testing.assert_allclose(records.to_numpy(halves.model.arrays)["weight"], np.linspace(-1, 1, 400), atol=1e-5)
    halves.model.publish_version()
    assert comparable(whole.model.state()) == comparable(halves.model.state())


def test_a_round_in_which_nobody_was_asked_has_no_weight_and_no_metrics() -> None:
    federation = stepped(publish=True)
    assert federation.metrics is not None and federation.metrics["fedpress.replies"] == 2
    assert federation.taken_weight > 0 and federation.summary(1, None, 1.0).replies == 2
    assert federation.take(2, None) == (None, None)
    assert federation.metrics is None and federation.taken_weight == 0
    assert federation.summary(2, None, 1.0).replies == 0


def test_without_a_model_it_says_where_one_comes_from() -> None:
    with pytest.raises(RuntimeError, match="it gets one from `start` or `configure_train`"):
        _ = Federation().model
