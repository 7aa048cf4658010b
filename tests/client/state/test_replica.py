"""A client's replica: moved by a delta, back by its undo, and never by a delta that does not fit."""

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client.state import replica as replicas
from fedpress.client.state.replica import NoMask, ReplicaWithUndo
from fedpress.compression.messages import records
from fedpress.compression.messages.orders import Download, Order
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.replica import Replica
from fedpress.compression.wire import position_set
from fedpress.server.model.versions import Downlink, Versions

SIZE = 60
LAYOUT = Layout((TensorSpec("weight", (SIZE,), "float32"),))
START = np.linspace(-1, 1, SIZE).astype(np.float32)
CONTENT = RecordDict({"arrays": records.from_numpy(flatten.unflatten(START, LAYOUT))})
NO_CONTENT = RecordDict()


def order(version: int, **more: Any) -> Order:
    return Order(
        "fed", ticket=1, round=3, mask_version=more.pop("mask_version", 0), version=version, accepted=0, **more
    )


def moved(versions: Versions, seed: int) -> None:
    draw = np.random.default_rng(seed)
    versions.advance(versions.held.floats(LAYOUT) + draw.standard_normal(SIZE).astype(np.float32), b"")


def received(
    versions: Versions,
    download: Download,
    held: ReplicaWithUndo | None,
    content: RecordDict = NO_CONTENT,
    **more: Any,
) -> ReplicaWithUndo | None:
    if held is not None:  # it is used up
        held = held._replace(replica=held.replica._replace(integers=held.replica.integers.copy()))
    return replicas.receive(order(versions.held.version), download, held, content, LAYOUT, **more)


def first(versions: Versions) -> ReplicaWithUndo:
    held = received(versions, versions.download(None), None, CONTENT)
    assert held is not None
    return held


@given(st.lists(st.integers(0, 99), min_size=2, max_size=6))
def test_a_delta_brings_the_servers_version_and_its_undo_the_one_before(seeds: list[int]) -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    for seed in seeds:
        before, base = held.replica, versions.held.version
        moved(versions, seed)
        after = received(versions, versions.download(base), held)
        assert after is not None and after.replica.version == versions.held.version
        np.testing.assert_array_equal(after.replica.integers, versions.held.integers)
        back = after.at(base, LAYOUT)
        assert back is not None
        np.testing.assert_array_equal(back.integers, before.integers)
        assert after.at(base - 1, LAYOUT) is None
        held = after


def test_the_server_that_does_not_know_of_the_last_step_sends_a_delta_from_the_version_before() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    moved(versions, 1)
    held = received(versions, versions.download(0), held)  # its reply is lost
    moved(versions, 2)
    held = received(versions, versions.download(0), held)
    assert held is not None
    np.testing.assert_array_equal(held.replica.integers, versions.held.integers)


WITH_BUFFERS = Layout(
    LAYOUT.parameters, (TensorSpec("table", (500,), "float32"), TensorSpec("n.running_mean", (2,), "float32"))
)
ROUNDS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["known", "lost", "absent"])), min_size=1, max_size=8)


@given(ROUNDS)
def test_buffers_come_when_they_have_changed_and_go_back_with_the_step(rounds: list[tuple[int, str]]) -> None:
    table = np.arange(500, dtype="<f4").tobytes()
    buffers = table + bytes(8)
    versions = Versions(START, buffers, WITH_BUFFERS, Downlink(0.1))
    arrays = {"table": np.frombuffer(table, np.float32), "n.running_mean": np.zeros(2, np.float32)}
    content = RecordDict({"arrays": records.from_numpy(flatten.unflatten(START, LAYOUT) | arrays)})
    download = versions.download(None)
    held = replicas.receive(order(0), download, None, content, WITH_BUFFERS)
    assert held is not None and held.replica.buffers == buffers and len(download.buffers) == 5  # they are in the arrays
    known = 0  # version that the server knows of
    for statistic, fate in rounds:
        buffers = table + np.array([statistic, 0], "<f4").tobytes()
        versions.advance(versions.held.floats(WITH_BUFFERS) + np.float32(0.1), buffers)
        if fate == "absent":
            continue
        before, download = held.replica, versions.download(known)
        held = replicas.receive(order(versions.held.version), download, held, NO_CONTENT, WITH_BUFFERS)
        assert held is not None and held.replica.buffers == buffers
        assert download.base is None or download.base < 0 or len(download.buffers) in (5, 13)
        back = held.at(before.version, WITH_BUFFERS)
        assert back is None or (back.buffers, back.version) == (before.buffers, before.version)
        known = held.replica.version if fate == "known" else known
        if fate == "lost":  # the next one may start from the same version as this one
            known = known if held.previous_version == known else held.replica.version


def grown(versions: Versions, factor: float) -> None:
    """Make a version on another grid: master is held times a factor."""
    grid = versions.held.grid
    versions.advance(versions.held.floats(LAYOUT) * np.float32(factor), b"")
    assert versions.held.grid != grid


@pytest.mark.parametrize("factor", [1e3, 1e9])
def test_a_grid_that_changes_is_followed_from_every_version_and_by_the_step_back(factor: float) -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    moved(versions, 1)
    behind = received(versions, versions.download(0), held)
    grown(versions, factor)
    for base, replica in ((0, held), (1, behind)):  # two versions behind, and one
        after = received(versions, versions.download(base), replica)
        assert after is not None and after.replica.grid == versions.held.grid
        np.testing.assert_array_equal(after.replica.integers, versions.held.integers)
        # The reply is lost: the server goes on from the version before, on the new grid and on another one.
        for change in (lambda: moved(versions, 2), lambda: grown(versions, factor)):
            change()
            again = received(versions, versions.download(base), after)
            assert again is not None
            np.testing.assert_array_equal(again.replica.integers, versions.held.integers)
            assert len(versions.download(base).delta) < 100 and len(versions.download(base).grid) in (10, 20, 30)


def test_a_grid_that_comes_twice_is_taken_once() -> None:
    """The order of the same version again: the client has the new grid, and steps back on it."""
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    grown(versions, 1e3)
    download = versions.download(0)
    once = received(versions, download, held)
    twice = received(versions, download, once)
    assert once is not None and twice is not None
    np.testing.assert_array_equal(twice.replica.integers, once.replica.integers)


def test_changes_of_the_grid_that_cannot_be_read_are_not_used() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    grown(versions, 1e3)
    download = versions.download(0)
    for bad in (download.grid[:-1], b"", b"\xff" * 10):
        assert received(versions, download._replace(grid=bad), held) is None


def test_a_client_with_the_servers_version_0_needs_no_arrays() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1, agreed_initial=True))
    moved(versions, 1)
    download = versions.download(None)
    assert received(versions, download, None) is None  # without a version 0 of its own
    ours, other = (Replica.initial(weights, LAYOUT) for weights in (START, np.roll(START, 1)))
    held = received(versions, download, None, initial=ours)
    assert held is not None
    np.testing.assert_array_equal(held.replica.integers, versions.held.integers)
    assert received(versions, download, None, initial=other) is None  # whatever a client begins with, the tag decides


def test_frozen_parameters_are_part_of_the_proof() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1, agreed_initial=True), frozen=b"a backbone")
    download, ours = versions.download(None), Replica.initial(START, LAYOUT)
    assert received(versions, download, None, initial=ours, frozen=b"another one") is None
    assert received(versions, download, None, initial=ours, frozen=b"a backbone") is not None


def test_a_delta_that_does_not_fit_is_not_used() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    moved(versions, 1)
    download = versions.download(0)
    assert received(versions, download, None) is None  # a client that holds nothing
    for bad in (
        download._replace(tag=b"12345678"), download._replace(delta=download.delta[:-1]), download._replace(base=5)
    ):  # fmt: skip
        assert received(versions, bad, held) is None
    assert received(versions, download, held) is not None


def test_within_another_mask_there_is_no_step_back() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    held = first(versions)
    moved(versions, 1)
    after = received(versions, versions.download(0), held)
    assert after is not None
    inside = LAYOUT.within(Mask.of(np.arange(SIZE) % 2 == 0))
    remapped = after.remapped(LAYOUT.change_to(inside))
    np.testing.assert_array_equal(remapped.replica.integers, after.replica.integers[::2])
    assert remapped.at(0, inside) is None and remapped.at(1, inside) is remapped.replica


def test_the_side_information_is_where_the_delta_moved_the_model() -> None:
    versions = Versions(START, b"", LAYOUT, Downlink(0.1))
    assert replicas.side_info(order(0), LAYOUT).shared_positions is None  # no download
    assert replicas.side_info(order(0, download=versions.download(None)), LAYOUT).shared_positions is None  # whole
    before = versions.held.integers
    moved(versions, 1)
    known = replicas.side_info(order(1, download=versions.download(0)), LAYOUT)
    np.testing.assert_array_equal(known.shared_positions, np.flatnonzero(versions.held.integers - before))
    theirs = versions.side_info(versions.download(0), 1)
    np.testing.assert_array_equal(known.shared_positions, theirs.shared_positions)


OLD, NEW = (Mask.of(np.random.default_rng(seed).random(SIZE) < 0.5) for seed in (1, 2))
WHOLE = position_set.pack(NEW.positions, SIZE)
CODED = position_set.pack(NEW.positions, SIZE, OLD.positions)


@pytest.mark.parametrize(
    ("coded", "known", "version"),
    [(WHOLE, None, 0), (WHOLE, OLD, 1), (CODED, OLD, 1), (b"", NEW, 2), (CODED, NEW, 2)],
    ids=["new client", "whole", "difference", "known", "known, and coded against an older one"],
)
def test_an_order_brings_its_mask_or_the_client_has_it(coded: bytes, known: Mask | None, version: int) -> None:
    layout = None if known is None else LAYOUT.within(known)
    found = replicas.layout_within_mask(order(0, mask=coded, mask_version=2), LAYOUT, layout, version)
    assert found.mask == NEW


@pytest.mark.parametrize(
    ("coded", "known", "version"), [(b"", None, 0), (b"", OLD, 1), (CODED[:-1], OLD, 1), (WHOLE[:-1], None, 0)]
)
def test_a_mask_that_the_client_lacks_is_asked_for(coded: bytes, known: Mask | None, version: int) -> None:
    layout = None if known is None else LAYOUT.within(known)
    with pytest.raises(NoMask, match="mask of version 2"):
        replicas.layout_within_mask(order(0, mask=coded, mask_version=2), LAYOUT, layout, version)


def test_a_model_without_a_mask_has_all_its_weights() -> None:
    assert replicas.layout_within_mask(order(0), LAYOUT, LAYOUT.within(OLD), 1) == LAYOUT
