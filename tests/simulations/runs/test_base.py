"""Pretrained weights that are agreed by their hash: never sent, never stored; another copy costs its owner alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import load_file, save_file
from tests.apps import frozen_base
from tests.apps.local_grid import LocalGrid

from fedpress.client import app as client_app
from fedpress.compression import safetensors_files
from fedpress.compression.errors import BaseError
from fedpress.compression.messages import orders, pieces, records
from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.messages.orders import Answer
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.orders import Orders
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job, plan_strategy
from fedpress.simulations.scenario import scenario as scenarios
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError

CLIENTS, ROUNDS = 3, 3
BASE_BYTES = 4 * (frozen_base.FEATURES + 1) * frozen_base.WIDTH


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of pretrained weights, in two files."""
    folder = tmp_path / "base"
    folder.mkdir()
    for number, (name, tensor) in enumerate(frozen_base.encoder(3).items()):
        save_file({name: tensor}, folder / f"{number}.safetensors")
    return folder


def load(base: Path, *more: str) -> Scenario:
    task = "task={name: 'tests.apps.frozen_base:FrozenBase'}"
    overrides = [
        task,
        f"clients={CLIENTS}",
        f"sampling.clients_per_round={CLIENTS}",
        "students.tiers=[]",
        "density=0.1",
    ]
    return scenarios.load("digits", [*overrides, f"base={base}", *more])


def run(
    scenario: Scenario, folder: Path, node_configs: Mapping[int, Mapping[str, Any]]
) -> tuple[SparseFed, LocalGrid, dict[str, Any]]:
    """Train for some rounds; the server and each client without a place of its own read the scenario's."""
    config = {"workload": job.REFERENCE, "scenario": scenario.to_json()}
    states = {node: {"state-folder": str(folder / f"state-{node}")} for node in range(1, CLIENTS + 1)}
    nodes = {node: {**states[node], **node_configs.get(node, {})} for node in states}
    grid = LocalGrid(client_app.app, CLIENTS, config, nodes)
    work = job.load(config)
    strategy = plan_strategy.strategy(work, RunFolder(folder))
    initial = records.from_numpy({name: t.numpy() for name, t in work.whole.fresh_model().state_dict().items()})
    arrays = strategy.start(grid, initial_arrays=initial, num_rounds=ROUNDS).arrays
    return strategy, grid, records.to_numpy(arrays)


def test_the_model_begins_with_the_base_and_neither_sends_nor_stores_it(base: Path, tmp_path: Path) -> None:
    strategy, grid, arrays = run(load(base), tmp_path, {})
    for name, tensor in frozen_base.encoder(3).items():
        assert np.array_equal(arrays[f"encoder.{name}"], tensor.numpy())
    assert not strategy.refusals
    assert not any(message.content.array_records for message in grid.sent)
    assert grid.passed["up"] + grid.passed["down"] < BASE_BYTES
    stored = [path for path in tmp_path.glob("state-*/**/*") if path.is_file()]
    assert len(stored) >= CLIENTS and sum(path.stat().st_size for path in stored) < CLIENTS * BASE_BYTES / 2


def test_neither_the_mean_of_models_nor_the_state_of_the_server_holds_it(base: Path, tmp_path: Path) -> None:
    strategy, _, arrays = run(load(base, "server.ema_decay=0.5"), tmp_path, {})
    state = strategy.model.state()
    assert state.average is not None and set(state.average.arrays) == {"head.weight", "head.bias"}
    assert np.array_equal(arrays["encoder.0.weight"], frozen_base.encoder(3)["0.weight"].numpy())


def test_a_client_with_another_base_says_so_before_it_trains_and_costs_itself_alone(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(frozen_base.encoder(4), other)
    strategy, grid, arrays = run(load(base), tmp_path, {2: {"base-weights": str(other)}})
    assert {refusal.node for refusal in strategy.refusals} == {2} and len(strategy.refusals) == ROUNDS
    detail = strategy.refusals[0].detail
    hashes = [safetensors_files.sha256(file) for file in (other, base)]
    assert "base: SHA-256 {}, expected {}, in ".format(*hashes) in detail and str(other) in detail
    assert not any(message.content.array_records for message in grid.sent)
    assert not any((tmp_path / "state-2").rglob("*.safetensors"))
    before = job.load({"scenario": load(base).to_json()}).whole.initial()
    assert before is not None and np.any(arrays["head.weight"] != before["head.weight"])


def test_a_copy_elsewhere_is_as_good_and_one_who_has_none_is_sent_it_once(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    bases = str(tmp_path / "bases")
    nodes = {
        1: {"base-weights": str(copy)},
        2: {"base-weights": str(copy)},
        3: {"base-weights": "/absent", "base-folder": bases},
    }
    strategy, grid, _ = run(load(base), tmp_path, nodes)
    assert not strategy.refusals
    whole = [message for message in grid.sent if orders.BASE in message.content]
    assert [message.metadata.dst_node_id for message in whole] == [3]
    whole_size = base_files(base)
    assert whole_size < strategy.ledger.total(direction="down", kind="base") < whole_size + 1000
    assert not any(message.content.array_records for message in grid.sent)
    stored = [path for path in tmp_path.glob("state-*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) < CLIENTS * BASE_BYTES / 2
    (kept,) = (tmp_path / "bases").glob("[0-9a-f]*")
    assert kept.name == safetensors_files.sha256(base) == safetensors_files.sha256(kept)
    # Another federation on the device has it, too.
    _, grid, _ = run(load(base, "seed=7"), tmp_path / "second", nodes)
    assert not any(orders.BASE in message.content for message in grid.sent)


PART = BASE_BYTES // 10
"""Bytes of a part here, smaller than the base by so much that ten parts and more are sent."""


def base_files(base: Path) -> int:
    return sum(path.stat().st_size for path in base.iterdir())


class BadLink(LocalGrid):
    """A grid that loses a message or damages it: those of some numbers among the messages with a part of a base."""

    def __init__(self, *arguments: Any, fault: Callable[[Message], Message | None], faulty: set[int]) -> None:
        super().__init__(*arguments)
        self.parts, self.fault, self.faulty = 0, fault, faulty

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if orders.BASE in message.content:
                self.parts += 1
                if self.parts in self.faulty:
                    changed = self.fault(message)
                    if changed is None:
                        ids.append("lost")
                        continue
                    message = changed
            ids += super().push_messages([message])
        return ids


def damaged(message: Message) -> Message:
    keys = [key for key in message.content if pieces.record_of(key) == orders.BASE]
    record = message.content.config_records[keys[1]]
    data = bytearray(pieces.data_of(record))
    data[5] ^= 1
    message.content[keys[1]] = ConfigRecord({"piece": bytes(data)})
    return message


def one_piece_short(message: Message) -> Message:
    message.content.pop(next(key for key in message.content if pieces.record_of(key) == orders.BASE))
    return message


@pytest.mark.parametrize("downlink", [True, False], ids=["deltas", "whole models"])
@pytest.mark.parametrize("fault", [lambda _: None, damaged, one_piece_short], ids=["lost", "damaged", "torn"])
def test_a_link_that_breaks_between_two_parts_costs_one_part(
    base: Path, tmp_path: Path, fault: Callable[[Message], Message | None], downlink: bool
) -> None:
    scenario = load(base, *([] if downlink else ["downlink=null"]))
    config = {"workload": job.REFERENCE, "scenario": scenario.to_json()}
    nodes = {node: {"state-folder": str(tmp_path / f"state-{node}")} for node in range(1, CLIENTS + 1)}
    nodes[3] |= {"base-weights": "/absent", "base-folder": str(tmp_path / "bases")}
    grid = BadLink(client_app.app, CLIENTS, config, nodes, fault=fault, faulty={1, 4})
    work = job.load(config)
    files = BaseSource(base, PART)
    strategy = plan_strategy.strategy(work, RunFolder(tmp_path), base=files, piece_bytes=1000)
    initial = records.from_numpy({name: t.numpy() for name, t in work.whole.fresh_model().state_dict().items()})
    strategy.start(grid, initial_arrays=initial, num_rounds=4)
    # Round 1 and 2 end at the broken link; in round 3 the client gets what it still lacks, and trains.
    assert [(refusal.node, refusal.round) for refusal in strategy.refusals] == [(3, 1), (3, 2)]
    assert grid.parts == files.parts + 2
    largest = max(
        len(value)
        for message in grid.sent
        for record in message.content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )
    assert largest <= 1000
    size = base_files(base)
    assert size < strategy.ledger.total(direction="down", kind="base") < 1.5 * size
    (kept,) = (tmp_path / "bases").glob("[0-9a-f]*")
    assert safetensors_files.sha256(kept) == files.sha256
    heads = sum(
        len(array.data) for m in grid.sent for record in m.content.array_records.values() for array in record.values()
    )
    assert heads == 0 if downlink else heads < 2 * BASE_BYTES  # of the base nothing went as arrays


def test_whoever_asks_for_ever_is_sent_the_base_a_little_more_than_once(base: Path, tmp_path: Path) -> None:
    files = BaseSource(base, PART)
    writer = Orders("fed", "arrays", "config", Accounting(), base=files)
    arrays = records.from_numpy({"weight": np.linspace(-1, 1, 400).astype(np.float32)})
    model = GlobalModel(arrays, None, optimizers.sgd(), Downlink(0.1))
    message, sent = writer.train(7, 1, {}, model), 0
    ticket = orders.read_order(message.content).ticket
    for claimed in [0, 5, 10**9] * 99:
        answer = Answer(ticket, 0, needs_base=files.sha256, base_bytes=claimed)
        reply = Message(RecordDict({orders.ANSWER: orders.write_answer(answer)}), reply_to=message)
        again = writer.with_base(reply, 1, "train", {}, model)
        sent += again is not None
    assert sent == files.parts + 2
    another = Answer(ticket, 0, needs_base="ab" * 32)
    reply = Message(RecordDict({orders.ANSWER: orders.write_answer(another)}), reply_to=message)
    assert writer.with_base(reply, 1, "train", {}, model) is None


def test_a_server_whose_file_is_not_the_pinned_one_does_not_begin(base: Path) -> None:
    pinned = load(base, f"base={{path: {base}, sha256: {'ab' * 32}}}")
    with pytest.raises(BaseError, match=f"SHA-256 {safetensors_files.sha256(base)}, expected abab"):
        job.load({"scenario": pinned.to_json()}).whole.fresh_model()
    assert load(base).base.sha256 == safetensors_files.sha256(base)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/absent", "base.path: there is no file /absent"),
        ("{path: null}", "base.path: missing"),
        ("{path: x, sha256: abc}", "base.sha256"),
    ],
)
def test_a_base_that_is_not_there_is_an_error_of_the_scenario(value: str, expected: str) -> None:
    with pytest.raises(ScenarioError, match=expected):
        scenarios.load("digits", [f"base={value}"])


def test_a_base_of_another_model_is_named(tmp_path: Path, base: Path) -> None:
    wide = tmp_path / "wide.safetensors"
    save_file({"0.weight": torch.ones(30, frozen_base.FEATURES)}, wide)
    with pytest.raises(ValueError, match=r"^base: .*'0.weight' has shape \(30, 64\), the model's has \(400, 64\)"):
        job.load({"scenario": load(wide).to_json()}).whole.fresh_model()


def test_init_need_not_hold_what_the_base_does(tmp_path: Path, base: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file({"head.weight": torch.ones(4, frozen_base.WIDTH), "head.bias": torch.zeros(4)}, head)
    model = job.load({"scenario": load(base, f"init={head}").to_json()}).whole.fresh_model()
    state = model.state_dict()
    assert (state["head.weight"] == 1).all()
    assert torch.equal(
        state["encoder.0.weight"], load_file(base / "1.safetensors").get("0.weight", torch.empty(0))
    ) or (torch.equal(state["encoder.0.weight"], load_file(base / "0.safetensors")["0.weight"]))
