"""Flower records: metrics fold into the answer and out again, and the size of everything that is sent."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders, pieces, records
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


def test_a_record_that_holds_an_array_as_it_is_gives_a_copy_or_a_view_that_nobody_can_change() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    held = records.views({"weight": values})
    assert held == records.from_numpy({"weight": values})
    mine = held["weight"].numpy()
    mine += 1  # the reader's own
    np.testing.assert_array_equal(values, np.arange(6).reshape(2, 3))
    seen = records.Arrays(held)["weight"]
    assert np.shares_memory(seen, values) and values.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        seen += 1


@given(
    st.lists(st.integers(0, 200_000), max_size=3),
    st.lists(st.integers(0, 200_000), max_size=3),
    st.booleans(),
)
def test_a_stored_message_is_the_same_again(arrays: list[int], entries: list[int], reply: bool) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    content = RecordDict(
        {
            "arrays": records.from_numpy({str(n): np.arange(count, dtype=np.uint8) for n, count in enumerate(arrays)}),
            "config": ConfigRecord({f"b{number}": bytes([number]) * count for number, count in enumerate(entries)}),
            "metrics": MetricRecord({"loss": [0.5]}),
        }
    )
    for name, array in content.array_records["arrays"].items():
        content[f"derived {name}"] = records.views({name: array.numpy()})
    message = Message(content, dst_node_id=3, message_type="train")
    message = Message(content, reply_to=message) if reply else message
    again = records.message_from_bytes(records.message_to_bytes(message))
    assert again.content == message.content and again.metadata.dst_node_id == message.metadata.dst_node_id
    assert list(again.content) == list(message.content)
    data = records.content_to_bytes(content)
    assert records.content_to_bytes(records.content_from_bytes(data)) == data
    with pytest.raises(ValueError, match="ends early"):
        records.content_from_bytes(data[:-1])


def test_errors_and_messages_without_records_are_stored_too() -> None:
    for message in messages():
        again = records.message_from_bytes(records.message_to_bytes(message))
        assert again.has_error() == message.has_error()
        assert again.error == message.error if message.has_error() else again.content == message.content


@pytest.mark.long  # three files' worth of 2 GiB
def test_beyond_what_protobuf_holds(tmp_path: Path) -> None:
    """A payload and a single tensor of more than 2 GiB pass through what stores and what sends."""
    size = 2**31 + 12345
    payload = bytes(size)  # untouched pages take no memory
    whole = RecordDict({orders.ANSWER: ConfigRecord({"update": payload})})
    with pytest.raises(Exception, match=r"pars|seriali"):
        whole.config_records[orders.ANSWER].deflate()  # as Flower pushes it
    sent = pieces.cut(whole)
    assert records.content_size(sent) > size
    with (tmp_path / "message").open("wb") as file:
        for record in [*sent.values()][:2] + [*sent.values()][-1:]:
            assert len(record.deflate()) < pieces.LIMIT + 1000
        file.writelines(records.content_pieces(sent))
    del sent
    with (tmp_path / "message").open("rb") as file:
        received = records.content_from(file)
    joined = pieces.join(received).config_records[orders.ANSWER]["update"]
    del received
    assert isinstance(joined, bytes) and len(joined) == size and joined == payload
    del joined
    del payload
    shape = (2**16, 2**15 + 1)  # one axis may have 2**31 entries at most, in Flower's own message
    size = shape[0] * shape[1]
    tensor = Array("uint8", shape, "raw", bytes(size))
    model = RecordDict({"arrays": records.of_arrays([("embedding.weight", tensor)])})
    assert records.content_size(model) > size
    with (tmp_path / "message").open("wb") as file:
        file.writelines(records.content_pieces(model))
    with (tmp_path / "message").open("rb") as file:
        again = records.content_from(file).array_records["arrays"]["embedding.weight"]
    assert again.shape == shape and len(again.data) == size and not any(again.data[:: 1 << 20])


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(3), np.array(2.0), np.zeros((0, 3))])
def test_an_array_as_it_is_may_have_one_entry_or_none(value: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Counters of batches and learned scales are scalars of numpy in what some libraries return."""
    held = records.DerivedArray.of(value)
    assert not held.view().flags.writeable and held.numpy().flags.writeable
    np.testing.assert_array_equal(held.view(), value)
    assert held.shape == np.shape(value) and len(held.data) > 0
