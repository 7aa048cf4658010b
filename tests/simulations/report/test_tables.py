"""Figures as text: cells keep their places, whatever they hold."""

from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.report import tables
from fedpress.simulations.results.records import ModelInfo, Results, StudentResult, Totals

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


def student(tier: str, onnx_accuracy: float | None) -> StudentResult:
    return StudentResult(
        tier=tier, version=3, parameters=12_345, bundle_bytes=16_000, accuracy=0.5, teacher_accuracy=0.75,
        student_accuracy=0.5, quantized_accuracy=0.5, sha256="ab" * 32, onnx_accuracy=onnx_accuracy,
    )  # fmt: skip


def test_onnx_graphs_have_a_column_where_there_are_some() -> None:
    def table(*students: StudentResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return tables.student_table(run_results().model_copy(update={"students": [*students]}))

    columns, rows = table(student("phone", None))
    assert columns[-1] == "clients say" and [len(row) for row in rows] == [len(columns)]
    columns, rows = table(student("phone", None), student("watch", 0.4321))
    assert columns[-1] == "as ONNX" and [row[-1] for row in rows] == ["-", "43.21%"]


def test_arrays_are_billed_as_flowertune_does() -> None:
    assert not any(name == "arrays" for name, _ in tables.run_facts(run_results()))
    totals = run_results().totals.model_copy(update={"array_bytes": 3 << 19, "dense_array_bytes": 400 << 20})
    facts = dict(tables.run_facts(run_results().model_copy(update={"totals": totals})))
    expected = "1.50 MB both ways, dense 400.00 MB; the budget of FlowerTune's leaderboard is 200,000 MB"
    assert facts["arrays"] == expected


def run_results() -> Results:
    return Results(
        scenario={"name": "small"},
        seed=1,
        status="finished",
        rounds=[],
        totals=Totals(up_bytes=1, down_bytes=1, dense_up_bytes=1, dense_down_bytes=1),
        model=ModelInfo(parameters=1, sha256=""),
        accuracy=None,
        seconds=0.0,
    )
