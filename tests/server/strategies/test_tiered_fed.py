"""Tiers that train, on real data and with the real client: whose bytes, whose nodes, and what a kill costs."""

import copy
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import serde
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.deserted import Answering
from tests.server.hostile import CONTENTS, ENTRIES, SAYS

from fedpress.client import app as client
from fedpress.compression.ledger import Ledger
from fedpress.compression.messages import records
from fedpress.compression.models.pruning import structural
from fedpress.server import app as server
from fedpress.server.app import Plan
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.fusion import heterofl
from fedpress.server.fusion.settings import Teaching
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.settings import Rounds
from fedpress.server.rounds.threaded_grid import PatientGrid
from fedpress.server.strategies import tiered_fed
from fedpress.simulations.conditions.network import VirtualClock
from fedpress.simulations.results import start
from fedpress.simulations.results.records import MEASURED, Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan as plans
from fedpress.simulations.runs.job import REFERENCE, Job
from fedpress.simulations.runs.recorder import Recorder
from fedpress.simulations.scenario import scenario

CLIENTS = 7
SHORT = [
    f"clients={CLIENTS}", "rounds=4", "sampling.clients_per_round=4", "training.epochs=1", "server.ema_decay=0.5",
    "students={tiers: [{name: phone, parameters: 0.05, trains: true}, {name: sensor, parameters: 800, trains: true}]}",
    "teaching={every: 2, epochs: 1}",
]  # fmt: skip


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


class LocalGrid(Grid):
    """All clients in this process, each answering at once; keeps the size of everything that passes."""

    def __init__(self, out: Path, chosen: scenario.Scenario, named: dict[int, str] | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
        config: Any = {"workload": REFERENCE, "scenario": chosen.to_json(), "out": str(out)}
        self.contexts = {}
        for node in range(1, chosen.clients + 1):
            own: Any = {"partition-id": node - 1}
            if named:
                own["tier"] = named[node]
            self.contexts[node] = Context(
                run_id=1, node_id=node, node_config=own, state=RecordDict(), run_config=config
            )
        self.clock = VirtualClock()  # it stands still
        self.passed = {"up": 0, "down": 0}
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(f"message-{self._sent}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.passed["down"] += records.serialized_size(message)
            arrived = serde.message_from_proto(serde.message_to_proto(message))
            reply = client.app(arrived, self.contexts[message.metadata.dst_node_id])
            self._replies[ids[-1]] = serde.message_from_proto(serde.message_to_proto(reply))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = [self._replies.pop(name) for name in list(message_ids) if name in self._replies]
        self.passed["up"] += sum(records.serialized_size(reply) for reply in replies)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


def chosen(*more: str) -> scenario.Scenario:
    return scenario.load("digits", [*SHORT, *more])


def planned(out: Path, *more: str) -> tuple[Plan, tiered_fed.TieredFed, Recorder]:
    one = chosen(*more)
    plan = plans.plan(Job(one, out), start.folder_of(one, out))
    assert isinstance(plan.strategy, tiered_fed.TieredFed) and isinstance(plan.record, Recorder)
    plan.record.keep_state = True
    return plan, plan.strategy, plan.record


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Whole:
    """A run from start to end."""

    def __init__(self, out: Path, *more: str) -> None:
        self.folder = RunFolder(out)
        self.plan, self.strategy, _ = planned(out, *more)
        self.grid = LocalGrid(out, chosen(*more))
        server.serve(self.plan, self.grid)
        self.results: Results = self.folder.load_results()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    torch.set_num_threads(1)
    return Whole(tmp_path_factory.mktemp("whole") / "run")


def test_every_byte_belongs_to_one_tier(whole: Whole) -> None:
    accounts = whole.strategy.accounts
    for direction in ("up", "down"):
        assert sum(each.ledger.total(direction=direction) for each in accounts.values()) == whole.grid.passed[direction]
    nodes = {name: {entry.node for entry in each.ledger.rows} for name, each in accounts.items()}
    assert nodes == {"": {1, 4, 7}, "phone": {2, 5}, "sensor": {3, 6}}
    # The run folder says the same: all rows, and those of each tier.
    rows = Ledger.load(whole.folder.ledger).rows
    assert sum(entry.bytes for entry in rows) == sum(whole.grid.passed.values())
    for name in ("phone", "sensor"):
        assert Ledger.load(whole.folder.tiers / f"{name}.csv").rows == [e for e in rows if e.node in nodes[name]]
    totals = whole.results.totals
    assert (totals.up_bytes, totals.down_bytes) == (whole.grid.passed["up"], whole.grid.passed["down"])
    for tier in whole.results.tiers:
        assert tier.up_bytes == accounts[tier.tier].ledger.total(direction="up") > 0
        of_rounds = sum(one.tiers[tier.tier].up_bytes for one in whole.results.rounds)
        assert 0 < tier.up_bytes - of_rounds <= tier.up_bytes / 2  # the rest: what came of its student's download


def test_each_tier_has_its_own_model_versions_and_figures(whole: Whole) -> None:
    strategy, results = whole.strategy, whole.results
    assert [one.replies for one in results.rounds] == [4] * 4
    assert all([part.replies for part in one.tiers.values()] == [1, 1] for one in results.rounds)
    federations = strategy.federations.values()
    assert {part.name for part in federations} == {"digits-1", "digits-1/phone", "digits-1/sensor"}
    for part in federations:
        assert part.model.version == 4 + 2  # a version for each round, and one for each teaching step
    small = {tier.tier: tier.parameters for tier in results.tiers}
    assert small["phone"] <= 0.05 * results.model.parameters and small["sensor"] <= 800
    for tier, student in zip(strategy.training_tiers, results.students, strict=True):
        assert structural.parameters_of(tier.model) == small[tier.name] == student.parameters
        assert results.rounds[-1].tiers[tier.name].accuracy == pytest.approx(student.student_accuracy)


@pytest.mark.parametrize(("method", "budget"), [("distillation", 1), ("distillation", 0), ("heterofl", 0)])
def test_a_killed_server_goes_on_to_the_same_end(whole: Whole, tmp_path: Path, method: str, budget: int) -> None:
    out = tmp_path / "run"
    more = [f"checkpoint_budget={budget}", *(["teaching={method: heterofl}"] if method == "heterofl" else [])]
    expected = Whole(tmp_path / "whole", *more) if method == "heterofl" else whole
    grid = LocalGrid(out, chosen(*more))
    for number in (1, 2, 3):  # after the step of round 2, its teaching is in the checkpoint
        plan, strategy, recorder = planned(out, *more)
        entered = recorder.on_round

        def on_round(summary: Any, evaluation: Any, entered: Any = entered, number: int = number) -> None:
            entered(summary, evaluation)
            if summary.round == number:
                raise Killed

        recorder.on_round = on_round  # type: ignore[method-assign]
        with pytest.raises(Killed):
            server.serve(plan, grid)
    plan, strategy, _ = planned(out, *more)
    server.serve(plan, grid)
    results = RunFolder(out).load_results()
    disturbed, undisturbed = (one.model_dump(exclude=MEASURED) for one in (results, expected.results))
    for figures in (disturbed, undisturbed):
        figures["scenario"].pop("checkpoint_budget")
    assert disturbed == undisturbed
    assert len(results.model.sha256) == 64
    # The server trains in rounds 2 and 4 where tiers teach each other: they need a checkpoint.
    written = RunFolder(out).checkpoints
    assert any(written.glob("*.journal")) is (budget == 0)
    alone = [1, 2, 4] if method == "distillation" else [1]
    assert CheckpointFolder(written).rounds() == ([2, 3, 4] if budget else alone)
    for tier, other in zip(strategy.training_tiers, expected.strategy.training_tiers, strict=True):
        assert tier.federation.accounting.ledger.rows == other.federation.accounting.ledger.rows
        np.testing.assert_array_equal(tier.federation.model.master, other.federation.model.master)


def test_a_checkpoint_of_other_tiers_is_refused(whole: Whole) -> None:
    fewer = "students.tiers=[{name: phone, parameters: 0.05, trains: true}]"
    out = whole.folder.path.parent / "fewer"
    plan, strategy, _ = planned(out, fewer)
    strategy.checkpoints = whole.strategy.checkpoints
    with pytest.raises(CheckpointError, match=r"has the tiers \['phone', 'sensor'\], this run has \['phone'\]"):
        server.serve(plan, LocalGrid(out, chosen(fewer)))


def test_nodes_say_their_tier_and_those_of_none_take_no_part(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["rounds=1", "teaching={global_model: distilled, every: 1, epochs: 1}", "sampling.clients_per_round=2"]
    more += ["students.tiers.0.student=mlp"]  # models of different kinds know each other's answers only
    plan, strategy, _ = planned(out, *more)
    named = {1: "sensor", 2: "sensor", 3: "sensor", 4: "phone", 5: "phone", 6: "phone", 7: "fridge"}
    for tier in strategy.training_tiers:
        tier.federation.sampling = replace(tier.federation.sampling, min_available_nodes=3)
    grid = LocalGrid(out, chosen(*more), named)
    before = copy.deepcopy(plan.model.state_dict())
    server.serve(plan, grid)
    assert strategy.nodes(grid, "phone") == [4, 5, 6] and strategy.nodes(grid, "sensor") == [1, 2, 3]
    # No client trains the global model: it has no replies, and what it knows it was taught.
    assert {entry.node for entry in strategy.ledger.rows} == {7}  # its answer to the question
    assert not torch.equal(before["0.weight"], plan.model.state_dict()["0.weight"])
    results = RunFolder(out).load_results()
    assert results.rounds[0].replies == 2
    kinds = [{type(layer) for layer in tier.model.modules()} for tier in strategy.training_tiers]
    assert [torch.nn.Conv2d in kind for kind in kinds] == [False, True]
    sizes = {student.tier: student.parameters for student in results.students}  # whose bundles could be rebuilt
    assert sizes == {tier.tier: tier.parameters for tier in results.tiers}


NUMBERS = itertools.count(1000)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENTS | st.builds(lambda name: RecordDict({"tier": ConfigRecord({"name": name})}), ENTRIES), SAYS)
def test_whatever_a_node_answers_when_it_is_asked_for_its_tier(
    whole: Whole, content: RecordDict, says: dict[str, Any]
) -> None:
    node = next(NUMBERS)
    grid = PatientGrid(Answering(content, node, **says))
    members = {name: whole.strategy.nodes(grid, name) for name in ("", "phone", "sensor")}
    found = [name for name, nodes in members.items() if nodes == [node]]
    record = content.get("tier")
    named = record.get("name") if isinstance(record, ConfigRecord) else None
    assert found in ([], [named])


def test_slices_stay_slices_of_the_global_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["rounds=2", "teaching={method: heterofl}"]
    plan, strategy, _ = planned(out, *more)
    server.serve(plan, LocalGrid(out, chosen(*more)))
    whole, version = strategy.model, strategy.model.version
    assert version == 2
    for tier in strategy.training_tiers:
        places = heterofl.positions(tier.federation.model.layout, whole.layout)
        np.testing.assert_array_equal(whole.master[places], tier.federation.model.master)
        assert tier.federation.model.version == version
    # Where only the largest clients have a weight, theirs alone moves it.
    held = np.zeros(whole.layout.size, bool)
    for tier in strategy.training_tiers:
        held[heterofl.positions(tier.federation.model.layout, whole.layout)] = True
    assert 0 < held.sum() < 0.06 * len(held)


def test_what_cannot_work_is_refused(whole: Whole) -> None:
    def made(*parts: tiered_fed.TrainingTier, proxy: int = 1, **options: Any) -> tiered_fed.TieredFed:
        return tiered_fed.TieredFed(parts, torch.nn.Linear(2, 2), torch.zeros(proxy, 2), **options)

    one = tiered_fed.TrainingTier("phone", Federation("a/phone"), torch.nn.Linear(2, 2))
    assert made(one).accounts.keys() == {"", "phone"}
    for bad in ([], [one, one], [one._replace(name="")], [one._replace(federation=Federation())]):
        with pytest.raises(tiered_fed.TierError, match="each with a name and a federation of its own"):
            made(*bad)
    with pytest.raises(tiered_fed.TierError, match="synchronous rounds only"):
        made(one, rounds=Rounds(schedule=Buffered(2)))
    with pytest.raises(tiered_fed.TierError, match="slices of one another are not taught"):
        made(one, sliced=True, teaching=Teaching())
    with pytest.raises(tiered_fed.TierError, match="got 0 inputs: does the task hold out a proxy part"):
        made(one, proxy=0, teaching=Teaching())
