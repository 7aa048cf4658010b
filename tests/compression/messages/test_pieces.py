"""Long entries in pieces: whole again whatever their size, and refused whatever became of a piece."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders, pieces, records
from fedpress.compression.messages.orders import Answer, MessageError

LIMIT = 1000
ENTRIES = st.dictionaries(
    st.text(max_size=8) | st.sampled_from(["update", "a/b", "fedpress.delta"]),
    st.integers(0, 9000).map(lambda size: bytes(i * 31 % 251 for i in range(size))) | st.text(max_size=9),
    max_size=4,
)


def content(update: bytes = bytes(range(256)) * 12, vote: bytes = b"v" * 2500) -> RecordDict:
    """A reply with two long entries, of four and three pieces, and a short one."""
    answer = orders.write_answer(Answer(1, 2, update, b"short", vote=vote))
    return RecordDict({orders.ANSWER: answer, "metrics": MetricRecord({"num-examples": 10})})


@given(
    st.dictionaries(st.text(max_size=8) | st.just("a/b"), ENTRIES, max_size=3), st.integers(orders.LEAST_PIECE, 4000)
)
def test_what_was_cut_is_whole_again_and_no_piece_is_longer_than_the_limit(
    given: dict[str, dict[str, bytes | str]], limit: int
) -> None:
    whole = RecordDict({key: ConfigRecord(dict(entries)) for key, entries in given.items()})
    whole["arrays"] = records.from_numpy({"w": np.arange(2000)})
    in_pieces = pieces.cut(whole, limit)
    assert pieces.join(in_pieces) == whole
    assert whole["arrays"] is in_pieces["arrays"]
    values = [value for record in in_pieces.config_records.values() for value in record.values()]
    assert all(len(value) <= max(limit, 44) for value in values if isinstance(value, bytes))
    assert pieces.join(records.content_from_bytes(records.content_to_bytes(in_pieces))) == whole


def test_what_goes_to_many_is_cut_once() -> None:
    known: dict[int, pieces.Pieces] = {}
    delta = b"d" * 5000
    first, second = (pieces.cut(RecordDict({"c": ConfigRecord({"x": delta, "n": n})}), LIMIT, known) for n in (1, 2))
    shared = [key for key in first if key in second and first[key] is second[key]]
    assert len(shared) == 5 and len(known) == 1
    assert pieces.join(second)["c"] == ConfigRecord({"x": delta, "n": 2})


def missing(cut: RecordDict, keys: list[str]) -> None:
    cut.pop(keys[1])


def doubled(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[-1][:-1] + "9"] = cut[keys[-1]]


def swapped(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]], cut[keys[1]] = cut[keys[1]], cut[keys[0]]


def of_another_message(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]] = pieces.cut(content(bytes(range(255)) * 12), LIMIT)[keys[0]]


def of_another_entry(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]] = cut[next(key for key in cut if "/vote/" in key)]


def all_of_another_message(cut: RecordDict, keys: list[str]) -> None:
    other = pieces.cut(content(b"x" * 3072), LIMIT)
    cut.update({key: other[key] for key in keys})


def shorter(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]] = ConfigRecord({"piece": pieces.data_of(cut.config_records[keys[0]])[:-1]})


def empty(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]] = ConfigRecord()


def of_another_kind(cut: RecordDict, keys: list[str]) -> None:
    cut[keys[0]] = ArrayRecord()


def unmarked(cut: RecordDict, keys: list[str]) -> None:
    del cut.config_records[orders.ANSWER]["update/fedpress.pieces"]


def marked_by_a_number(cut: RecordDict, keys: list[str]) -> None:
    cut.config_records[orders.ANSWER]["update/fedpress.pieces"] = 4


def marked_with_too_many(cut: RecordDict, keys: list[str]) -> None:
    record = cut.config_records[orders.ANSWER]
    record["update/fedpress.pieces"] = b"\xff\xff\xff\xff" + bytes(40)


FAULTS = [
    missing, doubled, swapped, of_another_message, of_another_entry, all_of_another_message, shorter, empty,
    of_another_kind, unmarked, marked_by_a_number, marked_with_too_many,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_pieces_that_are_not_those_of_the_message_are_refused(fault: Callable[[RecordDict, list[str]], None]) -> None:
    cut = pieces.cut(content(), LIMIT)
    keys = sorted(key for key in cut if "/update/" in key)
    assert len(keys) == 4
    fault(cut, keys)
    with pytest.raises(MessageError, match=r"missing|belong to no entry|are not the|malformed"):
        pieces.join(cut)


def test_pieces_below_any_use_are_refused() -> None:
    with pytest.raises(ValueError, match="pieces of 63 bytes: expected at least 64"):
        pieces.cut(content(), 63)
    record = ConfigRecord({**orders.write_order(orders.Order("f", 1, 1, 0, 0, 0, piece=64)), "fedpress.piece": 1})
    with pytest.raises(MessageError, match=r"'fedpress.piece' is 1, expected at least 64"):
        orders.find_order(RecordDict({"config": record}))
