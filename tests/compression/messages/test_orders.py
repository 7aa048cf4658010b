"""Orders and answers arrive as they were sent, and what does not hold what it should is refused."""

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common import serde
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders
from fedpress.compression.messages.orders import Answer, Download, MessageError, Order

INT = st.integers(0, 2**62)


def through_the_wire(content: RecordDict) -> RecordDict:
    return serde.recorddict_from_proto(serde.recorddict_to_proto(content))


DOWNLOADS = st.builds(
    Download,
    tag=st.binary(min_size=1),
    base=st.none() | st.integers(-1, 2**62),
    delta=st.binary(),
    origin=st.binary(),
    buffers=st.binary(),
    grid=st.binary(),
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
        piece=st.just(0) | st.integers(orders.LEAST_PIECE, 2**62),
    )
)
def test_orders_arrive_as_they_were_sent(order: Order) -> None:
    record = ConfigRecord({"lr": 0.1, **orders.write_order(order)})
    assert orders.read_order(through_the_wire(RecordDict({"config": record}))) == order


@pytest.mark.parametrize("part", [float("nan"), -0.1, 1.5])
@pytest.mark.parametrize("name", ["drop", "grow"])
def test_a_vote_on_what_is_no_part_of_the_weights_is_not_asked_for(name: str, part: float) -> None:
    order = Order("f", 1, 1, 1, 1, 0)._replace(**{name: part})
    with pytest.raises(orders.MessageError, match=f"{name}' is .*, expected a fraction, 0 to 1"):
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
        st.builds(lambda length: Answer(1, 2, needs_base="ab" * 32, base_bytes=length), INT),
        st.builds(lambda last: Answer(1, 2, error="too old", answered=last), INT),
    )
)
def test_answers_arrive_as_they_were_sent(answer: Answer) -> None:
    content = RecordDict({orders.ANSWER: orders.write_answer(answer)})
    assert orders.read_answer(through_the_wire(content)) == answer


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RecordDict(), "no ConfigRecord 'fedpress'"),
        (RecordDict({"arrays": ArrayRecord()}), r"mods=\[compress"),
        (RecordDict({"fedpress": ConfigRecord({"version": 1})}), "entry 'ticket' holds nothing, expected int"),
        (
            RecordDict({"fedpress": ConfigRecord({"ticket": True, "version": 1})}),
            "entry 'ticket' holds a bool, expected int",
        ),
        (
            RecordDict({"fedpress": ConfigRecord({"ticket": 1, "version": 1, "update": "text"})}),
            "entry 'update' holds a str, expected bytes",
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


def test_a_message_without_an_order_is_named() -> None:
    content = RecordDict({"config": ConfigRecord({"lr": 0.1}), "arrays": ArrayRecord()})
    assert orders.find_order(content) is None
    with pytest.raises(MessageError, match="needs the strategy `SparseFed` on the server"):
        orders.read_order(content)


@pytest.mark.parametrize("missing", ["federation", "round", "epoch", "version", "accepted"])
def test_each_part_of_an_order_must_be_there(missing: str) -> None:
    entries = orders.write_order(Order("f", 1, 1, 1, 1, 0))
    del entries[f"fedpress.{missing}"]
    with pytest.raises(MessageError, match=f"entry 'fedpress.{missing}' holds nothing, expected "):
        orders.read_order(RecordDict({"config": ConfigRecord(entries)}))


def test_another_form_of_the_mask_takes_its_place() -> None:
    order = Order("f", 1, 1, 1, 1, 0, mask=b"long form")
    content = RecordDict({"other": ConfigRecord(), "config": ConfigRecord(orders.write_order(order))})
    orders.rewrite_mask(content, b"short")
    assert orders.read_order(content) == order._replace(mask=b"short")
    assert not content["other"]
