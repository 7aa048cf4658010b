"""Sampling of nodes: seeded, without replacement, in order."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from tests.server.deserted import Deserted, order

from fedpress.compression.messages import records
from fedpress.server.rounds.sampling import PartOfGrid, available, draw
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid


def initial_arrays() -> ArrayRecord:
    return records.from_numpy({"weight": np.zeros(8, np.float32)})


@given(st.lists(st.integers(1, 2**62), unique=True, max_size=30).map(sorted), st.integers(-1, 40), st.integers(0, 99))
def test_a_draw_is_an_ordered_part_of_the_nodes_that_its_seed_repeats(nodes: list[int], count: int, seed: int) -> None:
    drawn = draw(nodes, count, seed)
    assert drawn == draw(nodes, count, seed) == sorted(set(drawn))
    assert set(drawn) <= set(nodes) and len(drawn) == max(0, min(count, len(nodes)))


def test_every_node_is_drawn_about_as_often() -> None:
    times = {node: 0 for node in range(10)}
    for seed in range(1000):
        for node in draw(list(times), 3, seed):
            times[node] += 1
    assert all(250 < count < 350 for count in times.values())


def test_sampling_repeats_itself_and_differs_between_rounds_and_seeds() -> None:
    def nodes(seed: int) -> list[list[int]]:
        strategy, arrays = SparseFed(fraction_train=0.25, seed=seed), initial_arrays()
        with InlineGrid("tests.apps.faulty_client:app", clients=20, workers=1) as grid:
            orders = [strategy.configure_train(number, arrays, ConfigRecord(), grid) for number in (1, 2, 3)]
        return [[message.metadata.dst_node_id for message in messages] for messages in orders]

    first = nodes(0)
    assert first == nodes(0)
    assert first != nodes(1)
    assert all(len(set(chosen)) == 5 for chosen in first)
    assert first[0] != first[1]


class Growing(Deserted):
    """A grid to which one more node connects each time that it is asked."""

    def __init__(self) -> None:
        self.nodes: list[int] = []

    def get_node_ids(self) -> list[int]:
        self.nodes.insert(0, len(self.nodes) + 1)
        return list(self.nodes)


def test_a_round_waits_for_enough_nodes() -> None:
    assert available(Growing(), 2) == [1, 2]


def test_a_part_of_a_grid_shows_some_nodes_and_passes_on_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)
    part = PartOfGrid(Deserted(), lambda: [3, 5])
    assert list(part.get_node_ids()) == [3, 5]
    (reply,) = part.send_and_receive([order()])
    assert reply.has_error()
    (message_id,) = part.push_messages([order()])
    (pulled,) = part.pull_messages([message_id])
    assert pulled.metadata.reply_to_message_id == message_id
