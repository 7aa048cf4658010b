"""The ledger: totals are the sums of its rows, also after a trip through a file."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.ledger import DIRECTIONS, KINDS, Entry, Ledger

ENTRIES = st.lists(
    st.builds(
        Entry,
        round=st.integers(0, 5),
        node=st.integers(0, 2**64 - 1),
        direction=st.sampled_from(DIRECTIONS),
        kind=st.sampled_from(KINDS),
        bytes=st.integers(0, 10**9),
    ),
    max_size=20,
)


def filled(entries: list[Entry]) -> Ledger:
    ledger = Ledger()
    for entry in entries:
        ledger.record(*entry)
    return ledger


@given(ENTRIES)
def test_every_total_is_the_sum_of_its_rows(entries: list[Entry]) -> None:
    ledger = filled(entries)
    assert ledger.rows == entries
    for direction in (*DIRECTIONS, None):
        for kind in (*KINDS, None):
            for round in (*range(6), None):
                expected = sum(
                    entry.bytes
                    for entry in entries
                    if direction in (None, entry.direction)
                    and kind in (None, entry.kind)
                    and round in (None, entry.round)
                )
                assert ledger.total(direction, kind, round) == expected  # type: ignore[arg-type]


@given(ENTRIES)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.csv"
    ledger = filled(entries)
    ledger.save(path)
    again = Ledger.load(path)
    assert again.rows == entries
    assert again.total() == ledger.total()


def test_the_file_is_a_table_that_pandas_reads(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "ledger.csv"
    filled([Entry(1, 7, "up", "update", 1200), Entry(1, 7, "down", "model", 4000)]).save(path)
    assert path.read_text() == "round,node,direction,kind,bytes\n1,7,up,update,1200\n1,7,down,model,4000\n"
    assert pandas.read_csv(path).groupby("direction")["bytes"].sum().to_dict() == {"up": 1200, "down": 4000}
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.csv"]


@pytest.mark.parametrize(
    ("direction", "kind", "size", "words"),
    [("left", "update", 1, "direction 'left'"), ("up", "udpate", 1, "kind 'udpate'"), ("up", "update", -1, "negative")],
)
def test_a_wrong_entry_is_refused_and_counts_nothing(direction: str, kind: str, size: int, words: str) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match=words):
        ledger.record(1, 1, direction, kind, size)  # type: ignore[arg-type]
    assert ledger.rows == [] and ledger.total() == 0


@pytest.mark.parametrize(("round", "node", "size"), [(1 << 32, 1, 1), (-1, 1, 1), (1, 1 << 64, 1), (1, 1, 1 << 64)])
def test_a_number_that_its_column_cannot_hold_is_refused_whole(round: int, node: int, size: int) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="out of range"):
        ledger.record(round, node, "up", "update", size)
    assert ledger.rows == []
    ledger.record(2, 3, "up", "update", 4)
    assert ledger.rows == [Entry(2, 3, "up", "update", 4)]


def test_a_row_takes_a_few_bytes() -> None:
    ledger = Ledger()
    tracemalloc.start()
    try:
        for number in range(10_000):
            ledger.record(number, (1 << 64) - 1 - number, "up", "update", 10**6 + number)
        assert tracemalloc.get_traced_memory()[0] < 30 * 10_000  # 22 bytes, and what the columns are ahead of need
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a ledger"),
        ("a,b\n1,2\n", "not a ledger"),
        ("round,node,direction,kind,bytes\n1,7,up,update\n", "line 2"),
        ("round,node,direction,kind,bytes\n1,7,up,update,5\n1,7,up,update,x\n", "line 3"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        Ledger.load(path)
