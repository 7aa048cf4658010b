"""Checkpoints: whole or refused, and a strategy that goes on from one as if nothing had been."""

import logging
import resource
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from tests.server.comparable import comparable

from fedpress.compression.ledger import Ledger
from fedpress.compression.messages import records
from fedpress.compression.tensors.flatten import flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.replica import SeededInit
from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.checkpoint.state import CheckpointError, Damaged
from fedpress.server.model import optimizers
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.federation import FederationState
from fedpress.server.rounds.settings import Rounds
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.conditions.network import Network, NetworkSettings
from fedpress.simulations.engines import client_states
from fedpress.simulations.engines.client_grid import EngineError
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


class Leaf(NamedTuple):
    """What a part of a part keeps."""

    array: NDArray[Any]
    text: str
    data: bytes


@dataclass
class Part:
    """What a part keeps, one field for each kind of value."""

    number: int = 3
    real: float = 0.1
    absent: Leaf | None = None
    leaf: Leaf | None = None
    by_number: dict[int, Leaf] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=dict)
    pair: tuple[str, bytes] = ("", b"")
    row: tuple[int, ...] = ()
    waiting: deque[tuple[Leaf, int]] = field(default_factory=deque)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    content: RecordDict = field(default_factory=RecordDict)
    anything: Any = None


def part() -> Part:
    leaf = Leaf(np.arange(6.0).reshape(2, 3), "ü", b"\0same")
    return Part(
        leaf=leaf,
        by_number={7: leaf, 2**62: Leaf(np.empty(0, np.int32), "", b"")},
        by_name={"a/b": [1, 2]},
        pair=("x", b"\0same"),
        row=(1, 2, 3),
        waiting=deque([(leaf, 1)]),
        tensors={"step": torch.zeros(()), "mean": torch.ones(3)},
        content=RecordDict({"metrics": MetricRecord({"loss": 0.5})}),
        anything=[None, True, "text"],
    )


def state() -> dict[str, Any]:
    return {"part": Leaf(np.arange(6.0).reshape(2, 3), "ü", b"data"), "other": {"x": 0.1}}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_what_is_packed_is_unpacked_with_its_types() -> None:
    data = states.pack({"first": part(), "second": part().leaf})
    saved = states.unpack(data)
    first, second = saved.part("first", Part), saved.part("second", Leaf)
    assert comparable(first) == comparable(part()) and comparable(second) == comparable(part().leaf)
    assert second.array.flags.writeable and data.count(b"\0same") == 1  # equal bytes stand there once


@pytest.mark.parametrize(("name", "kind"), [("none", Leaf), ("other", Leaf), ("part", Part)])
def test_a_part_that_is_not_there_or_of_another_type_is_named(name: str, kind: Any) -> None:
    with pytest.raises(CheckpointError, match=f"its part '{name}' is no {kind.__name__}"):
        states.unpack(states.pack(state())).part(name, kind)


def test_any_damage_is_found() -> None:
    good = states.pack(state())
    for position in range(len(good)):
        for bad in (good[:position], good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :]):
            with pytest.raises(CheckpointError):
                states.unpack(bad)
    with pytest.raises(Damaged):
        states.unpack(good + b"\0")


@pytest.mark.parametrize(("change", "way"), [(1, "update fedpress"), (-1, "finish that run with the fedpress that")])
def test_another_format_is_named_and_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int, way: str
) -> None:
    folder, own = CheckpointFolder(tmp_path), states.VERSION
    with monkeypatch.context() as patch:
        patch.setattr(states, "VERSION", own + change)
        folder.save(1, state())
    with pytest.raises(CheckpointError, match=f"format version {own + change}, this fedpress reads {own}; {way}"):
        folder.newest()
    assert folder.rounds() == [1]


def test_the_last_few_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    (tmp_path / ".abc.part").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    for number in range(1, 8):
        folder.save(number, state())
    assert folder.rounds() == [5, 6, 7]
    assert len(list(tmp_path.iterdir())) == 3
    found = folder.newest()
    assert found is not None and (found.round, found.skipped) == (7, 0)
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointFolder(tmp_path, keep=0)


def test_a_damaged_one_is_moved_aside_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(number, state())
    newest = tmp_path / "round-00000002.safetensors"
    torn = newest.read_bytes()[:-5]
    newest.write_bytes(torn)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        found = folder.newest()
    finally:
        logger.removeHandler(caplog.handler)
    assert found is not None and (found.round, found.skipped) == (1, 1)
    assert "cannot be used: it is torn" in caplog.text and "round-00000002.safetensors.damaged" in caplog.text
    assert (tmp_path / "round-00000002.safetensors.damaged").read_bytes() == torn
    (tmp_path / "round-00000001.safetensors").write_bytes(b"hello")
    for _ in range(2):  # never silently from the beginning
        with pytest.raises(CheckpointError, match="all are damaged"):
            folder.newest()


def test_a_disk_that_is_full_leaves_the_one_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, state())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="the one before it is untouched"):
            folder.save(2, {"part": Leaf(np.zeros(9000), "", b"")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = folder.newest()
    assert found is not None and found.round == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_the_ledger_comes_back_row_by_row() -> None:
    ledger, again = Ledger(), Ledger()
    ledger.record(1, 2**64 - 1, "up", "update", 12)
    ledger.record(2, 3, "down", "bundle", 0)
    again.record(9, 9, "up", "control", 9)
    again.replace(ledger.arrays())
    assert again.rows == ledger.rows
    assert (again.total(), again.total(round=9), again.total(direction="up")) == (12, 0, 12)
    again.replace(Ledger().arrays())
    assert again.rows == [] and again.total() == 0


# ---- a strategy that goes on -----------------------------------------------------------------------------------------

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
    **more: Any,
) -> tuple[SparseFed, Any]:
    made = SparseFed(on_round=killed_after(kill, seen), **{"fraction_evaluate": 0.0, **more})
    with InlineGrid(app, clients=4, workers=1, states=states, network=network, examples=lambda client: 100) as grid:
        result = made.start(grid, initial or initial_arrays(), num_rounds=count, evaluate_fn=evaluated)
    return made, result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_goes_on_is_the_undisturbed_run(tmp_path: Path, optimizer: str) -> None:
    rule, downlink = OPTIMIZERS[optimizer], None if optimizer == "sgd" else Downlink(0.05)
    expected: list[RoundSummary] = []
    averaging = 0.5 if optimizer == "momentum" else 0.0
    options: dict[str, Any] = {"optimizer": rule, "downlink": downlink, "averaging": averaging}
    undisturbed, result = run(tmp_path / "a", 6, expected, **options)
    seen: list[RoundSummary] = []
    options["checkpoints"] = tmp_path / "checkpoints"
    for kill in (2, 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", 6, seen, kill, **options)
    # The model's own first values no longer matter.
    resumed, ended = run(tmp_path / "b", 6, seen, initial=initial_arrays(seed=9), **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)
    assert ended.train_metrics_clientapp == result.train_metrics_clientapp
    assert ended.evaluate_metrics_serverapp == result.evaluate_metrics_serverapp
    assert ended.arrays == result.arrays
    for client in range(4):
        assert (tmp_path / "a" / f"state-{client}").read_bytes() == (tmp_path / "b" / f"state-{client}").read_bytes()


def test_late_replies_of_the_round_before_the_kill_are_still_billed(tmp_path: Path) -> None:
    network = Network(NetworkSettings(up_mbit=1.0, down_mbit=1.0, latency=0.1, rate_sigma=1.0, dropout=0.1), seed=3)
    expected: list[RoundSummary] = []
    options: dict[str, Any] = {"network": network, "rounds": Rounds(deadline=1.0), "downlink": Downlink(0.05)}
    undisturbed, _ = run(tmp_path / "a", 8, expected, **options)
    assert 0 < sum(len(summary.refusals) for summary in expected) < 8 * 4
    seen: list[RoundSummary] = []
    for kill in (3, 5):
        with pytest.raises(Killed):
            run(tmp_path / "b", 8, seen, kill, checkpoints=tmp_path / "checkpoints", **options)
    resumed, _ = run(tmp_path / "b", 8, seen, checkpoints=tmp_path / "checkpoints", **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["all at once", "one by one"])
def test_with_a_buffer_what_is_under_way_and_open_comes_back_too(tmp_path: Path, spread: float) -> None:
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
    for kill in (2, 3, 6):
        with pytest.raises(Killed):
            run(tmp_path / "b", 9, seen, kill, checkpoints=tmp_path / "checkpoints", **options)
    resumed, _ = run(tmp_path / "b", 9, seen, checkpoints=tmp_path / "checkpoints", **options)
    assert [figures(summary) for summary in seen] == [figures(summary) for summary in expected]
    assert whole(resumed) == whole(undisturbed)
    assert resumed.federation.orders.tickets.open


def test_versions_come_back_with_every_delta(tmp_path: Path) -> None:
    arrays = initial_arrays()
    layout = Layout.of_arrays(records.to_numpy(arrays))
    draw = SeededInit.like(flatten(records.to_numpy(arrays), layout), layout, 7)
    other = SeededInit.like(flatten(records.to_numpy(initial_arrays(2)), layout), layout, 8)
    before, _ = run(tmp_path / "a", 5, [], downlink=Downlink(0.05, draw=draw))
    after = SparseFed(fraction_evaluate=0.0, downlink=Downlink(0.05, draw=other))
    after.federation.adopt(initial_arrays(3))
    packed = states.pack({"federation": before.federation.state()})
    states.restore(after.federation, states.unpack(packed), "federation")
    first, second = before.model.versions, after.model.versions
    assert first is not None and second is not None
    assert (first.held.version, first.tag) == (second.held.version, second.tag) == (5, first.tag)
    for base in (None, -1, 0, 1, 2, 3, 4, 5):
        one, other = first.delta(base), second.delta(base)
        assert (one and one[:2]) == (other and other[:2])
        np.testing.assert_array_equal(one and one.support, other and other.support)
        assert first.download(base) == second.download(base)


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


def test_two_engines_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_states, "LOCK_SECONDS", 0.1)
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path):
        with pytest.raises(EngineError, match="another run is at work"):
            InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path)
    with InlineGrid("tests.apps.faulty_client:app", clients=2, workers=1, states=tmp_path):
        assert sorted(path.name.rstrip("abcdefghijklmnopqrstuvwxyz0123456789_") for path in tmp_path.iterdir()) == [
            "", "fedpress-",
        ]  # fmt: skip
