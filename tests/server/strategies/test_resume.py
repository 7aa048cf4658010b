"""A strategy that resumes from a checkpoint ends as the undisturbed run, to the bit."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from tests.server.comparable import comparable

from fedpress.compression.messages import records
from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.settings import BUDGET
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.model import optimizers
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.federation import Federation, FederationState
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.conditions.network import Network, NetworkSettings
from fedpress.simulations.engines.inline import InlineGrid

SIZE = 4000


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


def initial_arrays(seed: int = 1) -> ArrayRecord:
    return records.from_numpy(
        {
            "weight": np.random.default_rng(seed).normal(0, 0.1, SIZE).astype(np.float32),
            "norm.running_mean": np.zeros(4, np.float32),
            "norm.num_batches_tracked": np.array(5, np.int64),
        }
    )


OPTIMIZERS = {
    "sgd": optimizers.sgd(1.0),
    "momentum": optimizers.sgd(0.5, 0.9),
    "adam": optimizers.adam(),
    "yogi": optimizers.yogi(),
    "adagrad": optimizers.adagrad(),
}


def whole(strategy: SparseFed) -> Any:
    """All that a checkpoint would hold of a strategy, after it was packed and read again."""
    saved = states.unpack(states.pack({"federation": strategy.federation.state()}))
    return comparable(saved.part("federation", FederationState))


def killed_after(number: int, seen: list[RoundSummary]) -> Any:
    def on_round(summary: RoundSummary) -> None:
        if summary.round == number:
            raise Killed
        seen.append(summary)

    return on_round


def figures(summary: RoundSummary) -> tuple[Any, ...]:
    evaluation = summary.evaluation and dict(summary.evaluation)
    return (
        summary.round, summary.replies, summary.reasons, summary.up_bytes, summary.down_bytes, summary.seconds,
        evaluation, records.to_numpy(summary.arrays)["weight"].tobytes(),
    )  # fmt: skip


def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"sum": float(records.to_numpy(arrays)["weight"].sum()), "round": server_round})


def run(
    states: Path,
    count: int,
    seen: list[RoundSummary],
    kill: int = 0,
    network: Network | None = None,
    initial: ArrayRecord | None = None,
    app: str = "tests.apps.faulty_client:app",
    budget: float = BUDGET,
    **more: Any,
) -> tuple[SparseFed, Any]:
    if "checkpoints" in more:
        more["checkpoints"] = CheckpointFolder(more["checkpoints"], budget=budget)
    made = SparseFed(on_round=killed_after(kill, seen), **{"fraction_evaluate": 0.0, **more})
    with InlineGrid(app, clients=4, workers=1, states=states, network=network, examples=lambda client: 100) as grid:
        result = made.start(grid, initial or initial_arrays(), num_rounds=count, evaluate_fn=evaluated)
    return made, result


journaled = pytest.mark.parametrize("budget", [0.0, 1.0], ids=["journal", "checkpoints"])


@journaled
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_goes_on_is_the_undisturbed_run(tmp_path: Path, optimizer: str, budget: float) -> None:
    rule, downlink = OPTIMIZERS[optimizer], None if optimizer == "sgd" else Downlink(0.05)
    expected: list[RoundSummary] = []
    averaging = 0.5 if optimizer == "momentum" else 0.0
    options: dict[str, Any] = {"optimizer": rule, "downlink": downlink, "averaging": averaging}
    undisturbed, result = run(tmp_path / "a", 6, expected, **options)
    seen: list[RoundSummary] = []
    options |= {"checkpoints": tmp_path / "checkpoints", "budget": budget}
    for kill in (2, 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", 6, seen, kill, **options)
    assert any((tmp_path / "checkpoints").glob("*.journal")) is (budget == 0)
    # The model's own first values no longer matter.
    resumed, ended = run(tmp_path / "b", 6, seen, initial=initial_arrays(seed=9), **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)
    assert ended.train_metrics_clientapp == result.train_metrics_clientapp
    assert ended.evaluate_metrics_serverapp == result.evaluate_metrics_serverapp
    assert ended.arrays == result.arrays
    for client in range(4):
        assert (tmp_path / "a" / f"state-{client}").read_bytes() == (tmp_path / "b" / f"state-{client}").read_bytes()


@journaled
def test_late_replies_of_the_round_before_the_kill_are_still_billed(tmp_path: Path, budget: float) -> None:
    network = Network(NetworkSettings(up_mbit=1.0, down_mbit=1.0, latency=0.1, rate_sigma=1.0, dropout=0.1), seed=3)
    expected: list[RoundSummary] = []
    options: dict[str, Any] = {"network": network, "rounds": Rounds(deadline=1.0), "downlink": Downlink(0.05)}
    undisturbed, _ = run(tmp_path / "a", 8, expected, **options)
    assert 0 < sum(len(summary.refusals) for summary in expected) < 8 * 4
    seen: list[RoundSummary] = []
    options |= {"checkpoints": tmp_path / "checkpoints", "budget": budget}
    for kill in (3, 5):
        with pytest.raises(Killed):
            run(tmp_path / "b", 8, seen, kill, **options)
    resumed, _ = run(tmp_path / "b", 8, seen, **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)


@journaled
@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["all at once", "one by one"])
def test_with_a_buffer_what_is_under_way_and_open_comes_back_too(tmp_path: Path, spread: float, budget: float) -> None:
    """With no spread all replies come at the same moment, so that some are pulled and not in the buffer yet."""
    network = Network(NetworkSettings(up_mbit=1.0, down_mbit=1.0, latency=0.1, rate_sigma=spread, dropout=0.1), seed=3)
    expected: list[RoundSummary] = []
    options: dict[str, Any] = {
        "network": network, "rounds": Rounds(deadline=4.0, schedule=Buffered(2, max_staleness=3)),
        "downlink": Downlink(0.05), "fraction_train": 0.75,
    }  # fmt: skip
    undisturbed, _ = run(tmp_path / "a", 9, expected, **options)
    assert max(summary.max_staleness or 0 for summary in expected) > 0
    seen: list[RoundSummary] = []
    options |= {"checkpoints": tmp_path / "checkpoints", "budget": budget}
    for kill in (2, 3, 6):
        with pytest.raises(Killed):
            run(tmp_path / "b", 9, seen, kill, **options)
    resumed, _ = run(tmp_path / "b", 9, seen, **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)
    assert resumed.federation.orders.tickets.open


@pytest.mark.parametrize("same", [True, False], ids=["the same", "another"])
def test_versions_come_back_with_every_delta(tmp_path: Path, same: bool) -> None:
    """A server that makes another version 0 than before no longer offers it, and else goes on as it was."""
    downlink = Downlink(0.05, agreed_initial=True)
    before, _ = run(tmp_path / "a", 5, [], downlink=downlink)
    after = SparseFed(fraction_evaluate=0.0, downlink=downlink)
    after.federation.adopt(initial_arrays() if same else initial_arrays(3))
    packed = states.pack({"federation": before.federation.state()})
    states.restore(after.federation, states.unpack(packed), "federation")
    first, second = before.model.versions, after.model.versions
    assert first is not None and second is not None
    assert (first.held.version, first.tag) == (second.held.version, second.tag) == (5, first.tag)
    assert first.offers_initial and second.offers_initial is same
    for base in (None, -1, 0, 1, 2, 3, 4, 5):
        one, other = first.delta(base, agreed=same), second.delta(base)
        assert (one and one[:2]) == (other and other[:2])
        np.testing.assert_array_equal(one and one.support, other and other.support)
        assert first.download(base, agreed=same) == second.download(base)


def test_evaluation_on_clients_is_repeated_and_counts_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "fraction_evaluate": 1.0, "downlink": Downlink(0.05), "app": "tests.apps.evaluating_client:app",
    }  # fmt: skip
    undisturbed, result = run(tmp_path / "a", 4, [], **options)
    for kill in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", 4, [], kill, checkpoints=tmp_path / "checkpoints", **options)
    resumed, ended = run(tmp_path / "b", 4, [], checkpoints=tmp_path / "checkpoints", **options)
    assert whole(resumed) == whole(undisturbed)
    assert ended.evaluate_metrics_clientapp == result.evaluate_metrics_clientapp


def test_after_a_damaged_checkpoint_no_ticket_is_used_twice(tmp_path: Path) -> None:
    """The older checkpoint knows nothing of the tickets since; a client must not take an old answer for a new one."""
    options: dict[str, Any] = {"downlink": Downlink(0.05), "checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(Killed):
        run(tmp_path / "states", 6, [], 4, **options)
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    seen: list[RoundSummary] = []
    resumed, _ = run(tmp_path / "states", 6, seen, **options)
    assert [(summary.round, summary.replies) for summary in seen] == [(3, 4), (4, 4), (5, 4), (6, 4)]
    assert all(ticket > 1_000_000 for ticket in resumed.federation.orders.tickets.accepted.values())


def test_a_finished_run_has_nothing_left_to_do_and_can_be_made_longer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoints": tmp_path / "checkpoints"}
    _, first = run(tmp_path / "states", 2, [], **options)
    seen: list[RoundSummary] = []
    _, again = run(tmp_path / "states", 2, seen, **options)
    assert [summary.round for summary in seen] == [2]  # only what follows its step
    assert again == first
    run(tmp_path / "states", 3, seen, **options)
    assert [summary.round for summary in seen] == [2, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "has federation 'default', this run has 'other'"),
        ({"seed": 7}, "has seed 0, this run has 7"),
        ({"downlink": Downlink(0.1)}, "another `downlink`"),
        ({"averaging": 0.9}, "another `averaging`"),
        ({"initial": records.from_numpy({"weight": np.zeros(7, np.float32)})}, "another model"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run(tmp_path / "states", 1, [], checkpoints=tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=words):
        run(tmp_path / "states", 1, [], checkpoints=tmp_path / "checkpoints", **change)
    assert CheckpointFolder(tmp_path / "checkpoints").rounds() == [1]


def test_a_strategy_with_checkpoints_starts_once(tmp_path: Path) -> None:
    made, _ = run(tmp_path / "states", 1, [], checkpoints=tmp_path / "checkpoints")
    with InlineGrid("tests.apps.faulty_client:app", clients=4, workers=1) as grid:
        with pytest.raises(CheckpointError, match="runs `start` once"):
            made.start(grid, initial_arrays(), num_rounds=1)


class Noisy(SparseFed):
    """An app's own strategy, which adds to the model what no update holds."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        stepped = super().aggregate_train(server_round, replies)
        self.model.master += np.random.default_rng(server_round).normal(0, 0.01, SIZE).astype(np.float32)
        return stepped


@pytest.mark.parametrize("kind", [Noisy, SparseFed], ids=["in its hook", "between two rounds"])
def test_what_somebody_else_changes_is_in_a_checkpoint_not_in_a_journal(tmp_path: Path, kind: type[SparseFed]) -> None:
    folder = tmp_path / "checkpoints"

    def ended(name: str, kill: int = 0) -> SparseFed:
        made = kind(
            fraction_evaluate=0.0, downlink=Downlink(0.05), checkpoints=CheckpointFolder(folder / name, budget=0)
        )

        def on_round(summary: RoundSummary) -> None:
            if summary.round == 2 and kind is SparseFed:
                made.model.master *= np.float32(0.9)
            if summary.round == kill:
                raise Killed

        made.on_round = on_round
        with InlineGrid("tests.apps.faulty_client:app", clients=4, workers=1, states=tmp_path / name) as grid:
            made.start(grid, initial_arrays(), num_rounds=5)
        return made

    expected = ended("a")
    assert CheckpointFolder(folder / "a").rounds()[:2] == ([1, 3] if kind is SparseFed else [3, 4])
    with pytest.raises(Killed):
        ended("b", 4)
    assert whole(ended("b")) == whole(expected)


def test_steps_that_lead_to_another_model_are_given_up_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another processor: the rounds from there on are lost as with a damaged checkpoint."""
    options: dict[str, Any] = {"downlink": Downlink(0.05), "checkpoints": tmp_path / "checkpoints", "budget": 0.0}
    with pytest.raises(Killed):
        run(tmp_path / "states", 6, [], 2, **options)
    redo, seen = Federation.redo, list[RoundSummary]()

    def other(self: Federation, server_round: int, updates: Any, **more: Any) -> None:
        redo(self, server_round, updates, **more)
        if server_round == 2:
            self.model.master[7] += np.float32(1e-6)

    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    with monkeypatch.context() as patch:
        patch.setattr(Federation, "redo", other)
        resumed, _ = run(tmp_path / "states", 6, seen, **options)
    logger.removeHandler(caplog.handler)
    assert [(summary.round, summary.replies) for summary in seen] == [(number, 4) for number in range(1, 7)]
    assert all(ticket > 1_000_000 for ticket in resumed.federation.orders.tickets.accepted.values())
    assert "round 2, taken again, has led to another model than before" in caplog.text
    assert (tmp_path / "checkpoints" / "round-00000001.journal.damaged").exists()
