"""Figures as text: cells keep their places, whatever they hold."""

from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import tables

CELL = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[CELL] * n), min_size=1, max_size=5)))
def test_a_table_is_read_back_by_its_columns(rows: list[tuple[str, ...]]) -> None:
    head, *body = rows
    lines = tables.table_lines(head, body)
    assert [tuple(line.split()) for line in lines] == rows
    assert len({len(line) for line in lines}) == 1 or len(head) == 1  # the last column is set to the right


@given(st.lists(st.tuples(CELL, CELL), max_size=5))
def test_the_values_of_facts_begin_at_one_place(facts: list[tuple[str, str]]) -> None:
    lines = tables.fact_lines(facts)
    width = max((len(name) for name, _ in facts), default=0) + 2
    assert [(line[:width].strip(), line[width:]) for line in lines] == facts
