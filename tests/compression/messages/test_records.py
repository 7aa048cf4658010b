"""Flower records: metrics fold into the answer and out again, and the size of everything that is sent."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Answer, MessageError


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    yield


def through_the_wire(content: RecordDict) -> RecordDict:
    return serde.recorddict_from_proto(serde.recorddict_to_proto(content))


@given(st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False) | st.integers(0, 2**62), max_size=5))
def test_metrics_travel_in_the_answer_and_come_out_again(values: dict[str, float | int]) -> None:
    answer = Answer(1, 2, b"payload")
    content = RecordDict({orders.ANSWER: orders.write_answer(answer), "metrics": MetricRecord(values)})
    folded = records.folded(content)
    assert list(folded) == [orders.ANSWER]
    again = records.unfolded(through_the_wire(folded))
    assert orders.read_answer(again) == answer
    if values:
        assert again["metrics"] == MetricRecord(values)


def test_records_that_do_not_fit_the_answer_stay_beside_it() -> None:
    answer = orders.write_answer(Answer(1, 2, b"payload"))
    for metrics in ({"a": MetricRecord({"x": [1.0]})}, {"a": MetricRecord({"x": 1}), "b": MetricRecord({"x": 2})}):
        content = RecordDict({orders.ANSWER: answer, **metrics})
        assert set(records.folded(content)) == {orders.ANSWER, *metrics}


def test_the_model_must_be_in_one_record() -> None:
    with pytest.raises(MessageError, match="found 0"):
        records.only_arrays(RecordDict())
    with pytest.raises(MessageError, match=r"found 2 \['a', 'b'\]"):
        records.only_arrays(RecordDict({"a": ArrayRecord(), "b": ArrayRecord()}))


def messages() -> list[Message]:
    arrays = records.from_numpy({"w": np.arange(1000, dtype=np.float32)})
    order = Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})}), dst_node_id=3, message_type="train"
    )
    answer = orders.write_answer(Answer(3, 2, b"p" * 400, b"b" * 20, ""))
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    return [
        order,
        Message(RecordDict({orders.ANSWER: answer, "metrics": metrics}), reply_to=order),
        Message(Error(2, "it failed"), reply_to=order),
        Message(RecordDict({"arrays": arrays}), dst_node_id=3, message_type="evaluate"),
        Message(RecordDict({"s": ConfigRecord({"bundle": b"x" * 99})}), dst_node_id=3, message_type="query.student"),
        Message(RecordDict(), dst_node_id=3, message_type="train"),
    ]


def test_sizes_by_kind_sum_to_what_is_serialized() -> None:
    for message in messages():
        proto = serde.message_to_proto(message)
        part = proto.content if message.has_content() else proto.error
        assert records.serialized_size(message) == len(part.SerializeToString())
        assert sum(records.sizes(message).values()) == len(part.SerializeToString())


def test_sizes_are_named_by_what_the_bytes_are_for() -> None:
    order, reply, error, evaluation, offer, _ = (records.sizes(message) for message in messages())
    assert order.keys() == {"model", "control"} and order["model"] > 4000
    assert reply.keys() == {"update", "buffers", "control", "metrics"}
    assert (reply["update"], reply["buffers"]) == (400, 20)
    assert error.keys() == {"control"} and evaluation.keys() == {"evaluate"} and offer.keys() == {"bundle"}


def test_a_record_measured_before_is_not_measured_again() -> None:
    order = messages()[0]
    assert records.sizes(order, {id(order.content["arrays"]): 7})["model"] == 7


NAMES = st.text(max_size=200)


@given(st.dictionaries(NAMES, st.integers(0, 40_000), max_size=4), NAMES)
def test_a_record_has_the_size_that_it_is_serialized_to_array_by_array(counts: dict[str, int], key: str) -> None:
    record = records.from_numpy({name: np.zeros(count, np.float32) for name, count in counts.items()})
    whole = serde.recorddict_to_proto(RecordDict({key: record}))
    assert records.item_size(key, record) == whole.ByteSize() == len(whole.SerializeToString())


def test_a_derived_array_is_worth_one_that_holds_its_bytes() -> None:
    values, made = np.arange(6, dtype=np.float32).reshape(2, 3), []

    def make() -> np.ndarray:
        made.append(1)
        return values.copy()

    derived = records.of_arrays([("weight", records.DerivedArray("float32", (2, 3), make))])
    assert not made  # nothing is made before it is read
    plain = records.from_numpy({"weight": values})
    assert derived == plain and plain == derived and derived.count_bytes() == plain.count_bytes()
    assert records.content_to_bytes(RecordDict({"a": derived})) == records.content_to_bytes(RecordDict({"a": plain}))
    assert derived["weight"].object_id == plain["weight"].object_id
    mine = derived["weight"].numpy()
    mine += 1  # the reader's own
    np.testing.assert_array_equal(records.Arrays(derived)["weight"], values)
    assert derived != records.from_numpy({"weight": values + 1})
    assert pickle.loads(pickle.dumps(derived["weight"])) == plain["weight"]
    raw = records.DerivedArray("float32", (2, 3), make, "own/1")
    assert raw.data == values.tobytes() and raw != plain["weight"]
