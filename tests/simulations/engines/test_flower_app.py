"""The ClientApp that Flower's engine sends about, and what that engine refuses before a run begins."""

import pickle

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedpress.compression.messages import records
from fedpress.simulations.engines import flower_app
from fedpress.simulations.engines.flower_app import RemoteApp


def order(kind: str, state: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    content = flower_app.with_state(RecordDict({"config": ConfigRecord({"round": 1})}), state)
    return Message(content, dst_node_id=77, message_type=kind)


def context() -> Context:
    """What Flower's engine has: a node id of its own, no run configuration, and a state that stays empty."""
    return Context(1, 77, {"partition-id": 4, "num-partitions": 9}, RecordDict(), {})


def test_a_message_and_a_state_are_told_apart_again() -> None:
    arrays = records.from_numpy({"w": np.arange(3, dtype=np.float32)})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"a": 1})})
    state = RecordDict({"arrays": ConfigRecord({"b": b"2"}), "seen": arrays})
    both = flower_app.with_state(content, state)
    assert len(both) == 4 and len(content) == len(state) == 2
    assert flower_app.split(both) == (content, state)
    assert flower_app.split(content) == (content, RecordDict())


def test_the_state_goes_round_by_way_of_the_messages_and_flowers_own_stays_empty() -> None:
    app: RemoteApp = pickle.loads(pickle.dumps(RemoteApp("tests.apps.engine_client:app", {"key": 1})))
    state, flowers = RecordDict(), context()
    for expected in (1, 2, 3):
        reply = app(order("query.count", state), flowers)
        content, state = flower_app.split(reply.content)
        assert content["metrics"]["count"] == expected  # type: ignore[index]
        assert list(content) == ["metrics"] and list(state) == ["seen"]
    assert flowers == context()


def test_an_exception_is_the_first_line_of_the_error_and_the_traceback_follows() -> None:
    reply = RemoteApp("tests.apps.engine_client:app", {})(order("query.fail", RecordDict()), context())
    reason, _, details = str(reply.error.reason).partition("\n")
    assert reason == "ZeroDivisionError: as asked"
    assert "Traceback" in details and "engine_client.py" in details
