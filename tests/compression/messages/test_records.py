"""Orders and answers as Flower records, and the size of everything that is sent."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Answer, Download, MessageError, Order

INT = st.integers(0, 2**62)


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    yield


def through_the_wire(content: RecordDict) -> RecordDict:
    return serde.recorddict_from_proto(serde.recorddict_to_proto(content))


DOWNLOADS = st.builds(
    Download,
    tag=st.binary(min_size=1),
    base=st.none() | st.integers(-1, 2**62),
    delta=st.binary(),
    origin=st.binary(),
    buffers=st.binary(),
)


@given(
    st.builds(
        Order,
        federation=st.text(),
        ticket=INT,
        round=INT,
        mask_version=INT,
        version=INT,
        accepted=INT,
        download=st.none() | DOWNLOADS,
        drop=st.floats(0, 1),
        grow=st.floats(0, 1),
    )
)
def test_orders_arrive_as_they_were_sent(order: Order) -> None:
    record = ConfigRecord({"lr": 0.1, **orders.write_order(order)})
    assert orders.read_order(through_the_wire(RecordDict({"config": record}))) == order


@pytest.mark.parametrize("part", [float("nan"), -0.1, 1.5])
@pytest.mark.parametrize("name", ["drop", "grow"])
def test_a_vote_on_what_is_no_part_of_the_weights_is_not_asked_for(name: str, part: float) -> None:
    order = Order("f", 1, 1, 1, 1, 0)._replace(**{name: part})
    with pytest.raises(orders.MessageError, match=f"{name}' must be a part, 0 to 1"):
        orders.read_order(RecordDict({"config": ConfigRecord(orders.write_order(order))}))


@given(
    st.one_of(
        st.builds(
            lambda payload, buffers, tag, lost: Answer(7, 3, payload, buffers, "", tag, False, lost),
            st.binary(),
            st.binary(),
            st.binary(),
            st.booleans(),
        ),  # fmt: skip
        st.builds(lambda error, tag: Answer(2**62, 0, error=error, tag=tag), st.text(min_size=1), st.binary()),
        st.just(Answer(1, 2, needs_model=True)),
        st.builds(lambda last: Answer(1, 2, error="too old", answered=last), INT),
    )
)
def test_answers_arrive_as_they_were_sent(answer: Answer) -> None:
    content = RecordDict({orders.ANSWER: orders.write_answer(answer)})
    assert orders.read_answer(through_the_wire(content)) == answer


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RecordDict(), "no ConfigRecord 'fedpress'"),
        (RecordDict({"arrays": ArrayRecord()}), r"mods=\[compress"),
        (RecordDict({"fedpress": ConfigRecord({"version": 1})}), "entry 'ticket' must be a int, and holds nothing"),
        (
            RecordDict({"fedpress": ConfigRecord({"ticket": True, "version": 1})}),
            "entry 'ticket' must be a int, and holds a bool",
        ),
        (
            RecordDict({"fedpress": ConfigRecord({"ticket": 1, "version": 1, "update": "text"})}),
            "entry 'update' must be a bytes, and holds a str",
        ),
        (
            RecordDict({"fedpress": ConfigRecord({"ticket": 1, "version": 1, "error": "x", "answered": 2**62 + 1})}),
            "entry 'answered' is 4611686018427387905, expected a ticket",
        ),
    ],
)
def test_answers_that_do_not_hold_what_they_should_are_refused(content: RecordDict, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        orders.read_answer(content)


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
