"""Delivery of students: to the tier that a node reports, else in turn; what does not fit is named."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Error, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.deserted import NODE, Answering, Deserted
from tests.server.hostile import CONTENTS, SAYS, TEXTS

from fedpress.server import app
from fedpress.server.app import Delivery
from fedpress.server.publishing.publish import Published
from fedpress.server.rounds.accounting import Accounting

TIERS = ("phone", "sensor", "watch")


@settings(deadline=None)
@given(st.sets(st.integers(0, 99)), st.dictionaries(st.integers(0, 99), st.sampled_from(TIERS)))
def test_every_node_is_of_one_tier_and_of_the_one_that_it_reports(nodes: set[int], reported: dict[int, str]) -> None:
    members = app.tier_members(nodes, TIERS, reported)
    assert list(members) == list(TIERS)
    assert sorted(node for found in members.values() for node in found) == sorted(nodes)
    assert all(node in members[tier] for node, tier in reported.items() if node in nodes)
    silent = sorted(nodes - reported.keys())
    assert all(node in members[TIERS[number % 3]] for number, node in enumerate(silent))


@settings(deadline=None)
@given(st.sets(st.integers(0, 99)), st.integers(1, 4))
def test_where_nobody_reports_a_tier_they_belong_in_turn(nodes: set[int], tiers: int) -> None:
    names = [f"tier-{number}" for number in range(tiers)]
    ordered = sorted(nodes)
    assert app.tier_members(nodes, names, {}) == {name: ordered[i::tiers] for i, name in enumerate(names)}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("flwr").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("flwr").removeHandler(caplog.handler)


def test_an_unknown_tier_is_named_and_so_are_those_that_there_are(warnings: pytest.LogCaptureFixture) -> None:
    assert app.tier_members([1, 2], ["phone"], {1: "fridge"}) == {"phone": [2]}
    assert "node 1 says it is of tier 'fridge' and gets no student: tiers are phone" in warnings.text


def test_a_tier_that_nobody_is_of_is_named(warnings: pytest.LogCaptureFixture) -> None:
    members = app.tier_members([1, 2], TIERS, {1: "phone", 2: "phone"})
    assert members == {"phone": [1, 2], "sensor": [], "watch": []}
    assert "no node is of tier 'sensor', so nobody gets its student: tiers are phone, sensor, watch" in warnings.text


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A plan with one student to deliver, to one client."""
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)
    (tmp_path / "student.bundle").write_bytes(b"bundle")
    return SimpleNamespace(
        strategy=SimpleNamespace(tiers={}, accounts={"": Accounting()}),
        downloads_per_tier=1,
        student=SimpleNamespace(tier="phone", path=tmp_path / "student.bundle", sha256="00"),
    )


def delivered(plan: Any, grid: Grid) -> Delivery:
    published: list[Published] = [plan.student]
    (delivery,) = app.deliver(plan, grid, 1, published)
    assert delivery.node == NODE and delivery.student is plan.student
    return delivery


def test_a_student_for_a_node_that_is_gone_is_a_delivery_that_failed(plan: Any) -> None:
    delivery = delivered(plan, Deserted())
    assert delivery.accuracy is None and "Node Unavailable" in delivery.error


def test_an_accuracy_is_what_the_client_says(plan: Any) -> None:
    content = RecordDict({"metrics": MetricRecord({"accuracy": 0.25, "loss": 2.0})})
    assert delivered(plan, Answering(content))[2:] == (0.25, "")


@pytest.mark.parametrize(
    "metrics",
    [{}, {"loss": 1.0}, {"accuracy": 2.5}, {"accuracy": math.nan}, {"accuracy": -1}, {"accuracy": [0.5]}],
)
def test_an_answer_without_an_accuracy_is_a_delivery_that_failed(plan: Any, metrics: dict[str, Any]) -> None:
    for content in (RecordDict({"metrics": MetricRecord(metrics)}), RecordDict()):
        delivery = delivered(plan, Answering(content))
        assert delivery.accuracy is None and "no accuracy from 0 to 1" in delivery.error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(CONTENTS, st.builds(Error, st.integers(-9, 9), TEXTS)), SAYS)
def test_whatever_a_client_answers_is_a_delivery(plan: Any, content: RecordDict | Error, says: dict[str, Any]) -> None:
    delivery = delivered(plan, Answering(content, **says))
    assert (delivery.accuracy is None) == bool(delivery.error)
    assert delivery.error.isprintable() and len(delivery.error) < 500


def test_a_run_without_a_plan_names_the_key() -> None:
    with pytest.raises(ValueError, match="no 'plan'.*module:function"):
        app.app(Deserted(), Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
