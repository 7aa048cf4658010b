"""Replies pulled one by one from Flower's own SuperLink, where a node has pushed whatever it can push."""

import json
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from tests.server.superlink import SuperLink, made

from fedpress.compression.messages import records
from fedpress.server import _flower
from fedpress.server.rounds.threaded_grid import PatientGrid

Content = tuple[str, dict[str, bytes]]
"""Id of an object; the object and all below it, by their ids."""


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", SUPERLINK_NODE_ID), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


def list_of(kind: str, names: list[str], child: Content) -> Content:
    """Return an object that lists another one under many names."""
    root, objects = made(kind, [child[0]], json.dumps(dict.fromkeys(names, child[0])).encode())
    return root, {**objects, **child[1]}


def array_of_chunks(size: int, times: int) -> Content:
    """Return content with an array that is one chunk over and over."""
    chunk, objects = made("ArrayChunk", [], bytes(size))
    description = {"dtype": "uint8", "shape": [size * times], "stype": "raw", "arraychunk_ids": [0] * times}
    array, more = made("Array", [chunk], json.dumps(description).encode())
    return list_of("RecordDict", ["arrays"], list_of("ArrayRecord", ["weight"], (array, {**objects, **more})))


def chain(length: int) -> Content:
    """Return records within records."""
    child: Content = made("RecordDict", [], b"{}")
    for _ in range(length):
        child = list_of("RecordDict", ["deeper"], child)
    return child


def record_with(value: bytes) -> Content:
    return made("ConfigRecord", [], value)


HOSTILE: dict[str, Callable[[], Content]] = {
    "garbage in a record": lambda: list_of("RecordDict", ["fedpress"], record_with(b"\xff garbage")),
    "no content": lambda: made("ArrayChunk", [], b"data"),
    "no JSON": lambda: made("RecordDict", [], b"{"),
    "other objects than listed": lambda: made("RecordDict", [], json.dumps({"a": "0" * 64}).encode()),
    "records in records": lambda: chain(40),
    "a chunk over and over": lambda: array_of_chunks(1 << 16, 100_000),
    "a record over and over": lambda: list_of(
        "RecordDict", [str(number) for number in range(20_000)], record_with(bytes(1 << 14))
    ),
    "a list that is too long": lambda: list_of("RecordDict", ["x" * (_flower.MOST_LIST + 1)], record_with(b"")),
    "a value of no type": lambda: list_of("RecordDict", ["fedpress"], record_with(b"\x0a\x03\x0a\x01k")),
}


def asked(link: SuperLink, grid: PatientGrid) -> tuple[list[str], list[Message]]:
    """Send an order to each node; return the ids, and the orders as they arrived, in the order of the nodes."""
    messages = [
        Message(RecordDict({"config": ConfigRecord({"ticket": 7})}), dst_node_id=node, message_type="train")
        for node in link.nodes
    ]
    ids = [str(message_id) for message_id in grid.push_messages(messages)]
    return ids, [link.order(node) for node in link.nodes]


def honest(order: Message) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=order)


def pulled(grid: PatientGrid, ids: list[str]) -> dict[str, Message]:
    return {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_reply_that_cannot_be_read_is_an_error_of_its_order_and_the_others_come(name: str) -> None:
    link = SuperLink(3)
    grid = PatientGrid(link.grid)
    ids, (first, hostile, last) = asked(link, grid)
    link.answer(honest(first))
    link.answer_with(hostile, HOSTILE[name]())
    link.answer(honest(last))
    replies = pulled(grid, ids)
    assert [replies[message_id].has_error() for message_id in ids] == [False, True, False]
    reason = replies[ids[1]].error.reason
    assert reason is not None and reason.startswith("the reply cannot be read") and len(reason) < 500
    assert replies[ids[0]].content["metrics"] == MetricRecord({"loss": 1.0})
    assert link.calls["PullMessages"] == 1  # all of them are asked for in one request


@pytest.mark.parametrize("says", [{"reply_to_message_id": "of another"}, {"message_type": "no type at all"}])
def test_a_reply_belongs_to_the_order_that_the_superlink_knows_whatever_it_says(says: dict[str, str]) -> None:
    link = SuperLink(2)
    grid = PatientGrid(link.grid)
    ids, (victim, hostile) = asked(link, grid)
    if "reply_to_message_id" in says:
        says = {"reply_to_message_id": victim.metadata.message_id, "src_node_id": victim.metadata.dst_node_id}  # type: ignore[dict-item]
    link.answer_with(hostile, list_of("RecordDict", ["a"], record_with(b"")), **says)
    (reply,) = grid.pull_messages(ids)
    assert reply.metadata.reply_to_message_id == ids[1] and reply.has_error()
    link.answer(honest(victim))
    assert not pulled(grid, ids[:1])[ids[0]].has_error()


def test_names_that_are_no_text_come_through_and_are_found_when_they_are_measured() -> None:
    link = SuperLink(1)
    grid = PatientGrid(link.grid)
    ids, (order,) = asked(link, grid)
    link.answer_with(order, list_of("RecordDict", ["\ud800"], record_with(b"")))
    (reply,) = grid.pull_messages(ids)
    with pytest.raises(UnicodeEncodeError):
        records.serialized_size(reply)


def test_a_reply_of_too_many_objects_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flower, "MOST_OBJECTS", 3)
    link = SuperLink(1)
    grid = PatientGrid(link.grid)
    ids, (order,) = asked(link, grid)
    link.answer_with(order, chain(5))
    (reply,) = grid.pull_messages(ids)
    assert "more than 3 objects" in str(reply.error.reason) and not link.calls["PullObject"]


def test_a_reply_of_too_many_bytes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flower, "MOST_FETCHED", 1000)
    link = SuperLink(1)
    grid = PatientGrid(link.grid)
    ids, (order,) = asked(link, grid)
    link.answer(Message(RecordDict({"a": ConfigRecord({"bytes": bytes(2000)})}), reply_to=order))
    (reply,) = grid.pull_messages(ids)
    assert "more than 1000 bytes" in str(reply.error.reason)


def test_where_a_reply_spoils_the_list_of_replies_each_order_is_asked_for_by_itself() -> None:
    """A tree of objects that is deeper than protobuf can write fails the request for all replies."""
    link = SuperLink(3)
    grid = PatientGrid(link.grid)
    ids, (victim, hostile, other) = asked(link, grid)
    link.answer_with(hostile, chain(200))
    link.answer(honest(victim))
    replies = pulled(grid, ids)
    assert set(replies) == set(ids[:2]) and all(reply.has_error() for reply in replies.values())  # lost, this once
    link.answer(honest(other))
    assert not pulled(grid, ids[2:])[ids[2]].has_error()
    ids, (victim, hostile, other) = asked(link, grid)
    link.answer_with(hostile, chain(200))
    link.answer(honest(victim))
    link.answer(honest(other))
    replies = pulled(grid, ids)
    assert [replies[message_id].has_error() for message_id in ids] == [False, True, False]
