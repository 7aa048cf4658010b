"""CAFe in the loop: the server puts back what each client has left out, whichever delta that client had."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpress.client import mod
from fedpress.compression.encoders import cafe, encoder
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.server.model.versions import Downlink
from fedpress.server.strategies.sparse_fed import SparseFed

SIZE, NODES = 60, 6
LAYOUT = Layout((TensorSpec("weight", (SIZE,), "float32"),))
SCALE = 0.25


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    yield


class Nodes(Grid):
    def get_node_ids(self) -> list[int]:
        return list(range(1, NODES + 1))

    # Not used here: the hooks of the strategy are called by the test.
    set_run = create_message = push_messages = pull_messages = send_and_receive = run = None  # type: ignore[assignment]


@pytest.mark.parametrize("agreed", [False, True], ids=["sent", "agreed"])
def test_a_lossless_codec_gives_the_mean_of_the_updates(agreed: bool) -> None:
    """What was said + what was predicted == what was asked, client by client, or the master would go astray."""
    initial = np.linspace(-1, 1, SIZE).astype(np.float32)
    applied = mod.compress(
        cafe.aggregate_feedback(encoder.dense(), SCALE), layout=LAYOUT, initial=lambda context: {"weight": initial}
    )
    downlink = Downlink(0.1, agreed_initial=agreed, prediction=SCALE)
    strategy = SparseFed(fraction_train=0.5, downlink=downlink, layout=LAYOUT)
    contexts = {
        node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        for node in Nodes().get_node_ids()
    }
    random, merged = np.random.default_rng(1), set()
    arrays = records.from_numpy({"weight": initial})
    for number in range(1, 13):
        updates: list[Any] = []

        def application(message: Message, _: Context) -> Message:
            updates.append(random.standard_normal(SIZE).astype(np.float32))  # noqa: B023
            held = records.to_numpy(message.content["arrays"])["weight"]
            trained = records.from_numpy({"weight": held + updates[-1]})  # noqa: B023
            content = {"arrays": trained, "metrics": MetricRecord({"num-examples": 3})}
            return Message(RecordDict(content), reply_to=message)

        replies = []
        for message in strategy.configure_train(number, arrays, ConfigRecord(), Nodes()):
            order = orders.read_order(message.content)
            if order.download and order.download.base is not None and order.download.delta:
                merged.add(order.version - order.download.base)
            own = serde.message_from_proto(serde.message_to_proto(message))
            replies.append(applied(own, contexts[message.metadata.dst_node_id], application))
        before = strategy.model.master.copy()
        stepped, metrics = strategy.aggregate_train(number, replies)
        assert stepped is not None and metrics is not None and metrics["fedpress.replies"] == NODES // 2
        arrays = stepped
        np.testing.assert_allclose(strategy.model.master - before, np.mean(updates, axis=0), atol=2e-5)
    assert {1, 2, 3} <= merged
