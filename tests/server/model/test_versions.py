"""Versions and their deltas: whatever is lost, a client that gets a download holds the server's model, bit for bit."""

import itertools

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.client.state import replica
from fedpress.client.state.replica import ReplicaWithUndo
from fedpress.compression.errors import NonFiniteError
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.replica import Replica
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads
from fedpress.server.checkpoint import state
from fedpress.server.model.versions import FROM_NOTHING, Downlink, Versions, VersionsState

LAYOUT = Layout((TensorSpec("a", (40, 30), "float32"), TensorSpec("b", (80,), "float32")))
seeds = st.integers(0, 2**32 - 1)
MOST = float(np.finfo(np.float32).max)
INITIAL = np.random.default_rng(5).normal(0, 0.05, LAYOUT.size).astype(np.float32)


def walk(master: Vector, random: np.random.Generator) -> Vector:
    step: Vector = (random.standard_normal(LAYOUT.size) ** 3 * 1e-3).astype(np.float32)
    return master + step


def jump(layout: Layout, random: np.random.Generator) -> Vector:
    """Return weights anywhere in float32: each tensor has a scale of its own, a tail, one large entry, or is zero."""
    parts = []
    for start, stop in itertools.pairwise(layout.offsets.tolist()):
        values = random.standard_normal(stop - start)
        kind = random.integers(4)
        if kind == 1:
            values *= np.exp(random.normal(0, 8, stop - start))
        elif kind == 2:
            values[1:] *= 1e-5
        parts.append(values * (kind < 3) * 10.0 ** random.uniform(-44, 38.5))
    weights: Vector = np.clip(np.concatenate(parts), -MOST, MOST).astype(np.float32)
    return weights


def off(versions: Versions, master: Vector, layout: Layout) -> float:
    """Return how far held is from master, as a fraction of the tensor's largest magnitude, in the worst tensor."""
    held = versions.held.floats(layout).astype(np.float64)
    parts = [slice(*bounds) for bounds in itertools.pairwise(layout.offsets.tolist())]
    distances = [np.abs(held[part] - master[part]).max() for part in parts]
    peaks = [max(float(np.abs(master[part]).max()), 2.0**-149) for part in parts]
    return max(float(distance) / peak for distance, peak in zip(distances, peaks, strict=True))


class Pair:
    """A server's versions and one client that may not get what it is sent, nor be heard.

    Args:
        own: The client's own initial model: that of the server, another one, or None where it has none and the server
            does not take it to have one.
        levels: Of the downlink.
    """

    def __init__(self, own: Vector | None, levels: int = 1) -> None:
        self.master = INITIAL.copy()
        self.own = None if own is None else Replica.initial(own, LAYOUT)
        self.downlink = Downlink(0.05, levels, agreed_initial=own is not None)
        self.versions = Versions(INITIAL, b"", LAYOUT, self.downlink)
        self.kept: ReplicaWithUndo | None = None
        self.confirmed: int | None = None
        self.makes_initial = True
        self.has_another = own is not None and not np.array_equal(own, INITIAL)  # so that it asks once
        self.forms: list[int | None] = []
        self.asked = 0  # how often a download was of no use, and the client asked for the whole model

    def first(self, download: orders.Download, mask: Mask | None = None) -> Replica | None:
        """The client's version 0, where it is the one that is offered."""
        same = self.own is not None and self.own.tag(0) == download.origin
        return self.own.within(mask) if self.own and same else None

    def contact(self, heard: bool) -> None:
        """One message down; `heard`: the reply comes through."""
        for whole in (False, self.confirmed is None):
            download = self.versions.download(self.confirmed, whole, self.makes_initial)
            self.forms.append(download.base)
            content = RecordDict()
            if download.base is None:
                held = self.versions.held.floats(LAYOUT)
                content["arrays"] = records.from_numpy(flatten.unflatten(held, LAYOUT))
            order = orders.Order("test", 1, 1, 0, self.versions.held.version, 0, download)
            after = replica.receive(order, download, self.kept, content, LAYOUT, self.first(download))
            if after is not None:
                break
            self.makes_initial = self.makes_initial and self.confirmed is not None
            self.confirmed = None  # it asks for the whole model
            self.asked += 1
        assert after is not None and after.replica.tag(0) == self.versions.tag
        np.testing.assert_array_equal(after.replica.integers, self.versions.held.integers)
        self.kept = after
        if heard:
            self.confirmed = self.versions.held.version


OWN = st.sampled_from([None, INITIAL, INITIAL[::-1].copy()])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("heard lost away forgets taught jump".split()), max_size=40),
    OWN,
    st.sampled_from([1, 7]),
    seeds,
)
def test_a_client_holds_what_the_server_holds_whatever_was_lost(
    fates: list[str], own: Vector | None, levels: int, seed: int
) -> None:
    pair, random = Pair(own, levels), np.random.default_rng(seed)
    for fate in fates:
        pair.master = jump(LAYOUT, random) if fate == "jump" else walk(pair.master, random)
        pair.versions.advance(pair.master, b"", Downlink(0.7, levels=15) if fate == "taught" else None)
        if fate == "forgets":
            pair.kept = None
        elif fate not in ("away", "jump"):
            pair.contact(heard=fate == "heard")
    assert pair.asked <= fates.count("forgets") + pair.has_another  # a grid that changes costs nobody the whole model


class MaskedPair(Pair):
    """The same, with a mask that changes now and then."""

    def __init__(self, own: Vector | None, masked: bool) -> None:
        super().__init__(own)
        self.layout, self.mask_version = LAYOUT, int(masked)
        self.before: Layout | None = None  # the client's
        if masked:
            self.layout = LAYOUT.within(Mask.of(np.random.default_rng(8).random(LAYOUT.size) < 0.5))
            self.master = self.master[self.layout.mask.flags]  # type: ignore[union-attr]
            self.versions = Versions(INITIAL, b"", self.layout, self.downlink, mask_version=self.mask_version)

    def change(self, random: np.random.Generator) -> None:
        old = self.layout.mask.flags if self.layout.mask else np.ones(LAYOUT.size, np.bool_)
        after = LAYOUT.within(
            Mask.of(np.where(random.random(LAYOUT.size) < 0.2, random.random(LAYOUT.size) < 0.5, old))
        )
        self.master = self.layout.change_to(after).apply(self.master)
        self.layout, self.mask_version = after, self.mask_version + 1
        self.versions.change_mask(after, self.mask_version)

    def step(self, random: np.random.Generator, jumps: bool = False) -> None:
        self.master = (
            jump(self.layout, random)
            if jumps
            else self.master + (random.standard_normal(self.layout.size) ** 3 * 1e-3).astype(np.float32)
        )
        self.versions.advance(self.master, b"")

    def meet(self, heard: bool) -> None:
        """One message down, to a client that knows its mask by itself; see `contact`."""
        kept = self.kept
        if kept is not None and self.before is not None and self.before != self.layout:
            kept = kept.remapped(self.before.change_to(self.layout))
        for whole in (False, self.confirmed is None):
            download = self.versions.download(self.confirmed, whole, self.makes_initial)
            self.forms.append(download.base)
            content = RecordDict()
            if download.base is None:
                held = self.versions.held.floats(self.layout)
                content["arrays"] = records.from_numpy(flatten.unflatten(held, self.layout))
            order = orders.Order("test", 1, 1, self.mask_version, self.versions.held.version, 0, download)
            after = replica.receive(order, download, kept, content, self.layout, self.first(download, self.layout.mask))
            if after is not None:
                break
            self.makes_initial = self.makes_initial and self.confirmed is not None
            self.confirmed = None
            self.asked += 1
        assert after is not None and after.replica.tag(self.mask_version) == self.versions.tag
        np.testing.assert_array_equal(after.replica.integers, self.versions.held.integers)
        support = self.versions.side_info(download, self.versions.held.version).shared_positions
        if support is not None:
            decoded = payloads.decode(download.delta, SideInfo(self.layout))
            assert isinstance(decoded, Sparse)
            np.testing.assert_array_equal(support, decoded.positions)
        self.kept, self.before = after, self.layout
        if heard:
            self.confirmed = self.versions.held.version


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from("heard heard lost away forgets change jump".split()), max_size=40),
    OWN,
    st.booleans(),
    seeds,
)
def test_a_client_holds_what_the_server_holds_whatever_became_of_the_mask(
    fates: list[str], own: Vector | None, masked: bool, seed: int
) -> None:
    pair, random = MaskedPair(own, masked), np.random.default_rng(seed)
    for fate in fates:
        if fate == "change":
            pair.change(random)
        pair.step(random, jumps=fate == "jump")
        if fate == "forgets":
            pair.kept = None
        elif fate in ("heard", "lost"):
            pair.meet(heard=fate == "heard")
    saved = state.unpack(state.pack({"versions": pair.versions.state()})).part("versions", VersionsState)
    again = Versions(INITIAL, b"", LAYOUT, pair.downlink, mask_version=int(masked))
    again.restore(saved, pair.layout, pair.mask_version)
    for one in (pair.versions, again):
        one.advance(pair.master, b"")
    assert again.tag == pair.versions.tag
    for base in (None, 0, pair.confirmed, max(0, pair.versions.held.version - 2)):
        assert again.download(base) == pair.versions.download(base)


def test_a_new_mask_costs_no_whole_model() -> None:
    """A weight that was dropped and is back has its old value at the client, and begins at zero at the server."""
    pair, random = MaskedPair(INITIAL, masked=True), np.random.default_rng(1)
    pair.meet(heard=True)
    first = pair.layout
    pair.step(random)
    for after in (pair.layout.mask.flags & (np.arange(LAYOUT.size) % 9 > 0), first.mask.flags):  # type: ignore[union-attr]
        moved = LAYOUT.within(Mask.of(after))
        pair.master = pair.layout.change_to(moved).apply(pair.master)
        pair.layout, pair.mask_version = moved, pair.mask_version + 1
        pair.versions.change_mask(moved, pair.mask_version)
        pair.step(random)
    pair.meet(heard=True)
    pair.step(random)
    pair.meet(heard=True)
    assert pair.forms == [0, 0, 3]
    assert pair.versions.download(3).origin == b"" != pair.versions.download(None).origin


def test_a_lost_reply_costs_no_whole_model() -> None:
    pair, random = Pair(None), np.random.default_rng(1)
    pair.contact(heard=True)
    for heard in (False, False, True, False, True):
        pair.master = walk(pair.master, random)
        pair.versions.advance(pair.master, b"")
        pair.contact(heard)
    assert pair.forms == [None, 0, 0, 0, 3, 3]  # the arrays once; then deltas from the last version that was confirmed


def test_a_client_with_the_same_version_0_needs_no_arrays() -> None:
    pair = Pair(INITIAL)
    pair.contact(heard=True)
    assert pair.forms == [0] and pair.versions.download(None).delta != b"" or pair.versions.delta(0) is not None
    assert pair.versions.download(0).delta == b"" == pair.versions.download(0).origin


def test_a_client_that_was_long_away_gets_a_snapshot_or_starts_from_version_0() -> None:
    for own, base in ((None, FROM_NOTHING), (INITIAL, 0), (INITIAL + 1, FROM_NOTHING)):
        pair, random = Pair(own), np.random.default_rng(2)
        pair.contact(heard=True)
        for _ in range(200):
            pair.master = walk(pair.master, random)
            pair.versions.advance(pair.master, b"")
        pair.contact(heard=True)
        assert pair.forms[-1] == base
        assert sum(change.entries for change in pair.versions.state().changes.values()) <= LAYOUT.size / 2


def test_versions_move_towards_the_master() -> None:
    pair, random = Pair(INITIAL), np.random.default_rng(3)
    target = walk(pair.master, random)
    missing = [float(np.linalg.norm(target - pair.versions.held.floats(LAYOUT)))]
    for _ in range(100):
        pair.versions.advance(target, b"")
        missing.append(float(np.linalg.norm(target - pair.versions.held.floats(LAYOUT))))
    assert all(after <= before for before, after in zip(missing, missing[1:], strict=False))
    assert missing[-1] < 0.02 * missing[0]


def advanced(versions: Versions, master: Vector, times: int) -> None:
    for _ in range(times):
        versions.advance(master, b"")


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([1, 7]))
def test_held_arrives_wherever_in_float32_master_goes(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    versions = Versions(jump(LAYOUT, random), b"", LAYOUT, Downlink(0.1, levels))
    for _ in range(2):
        master = jump(LAYOUT, random)
        for _ in range(20):
            advanced(versions, master, 50)
            if off(versions, master, LAYOUT) <= 2.0**-17:
                break
        assert off(versions, master, LAYOUT) <= 2.0**-17


@pytest.mark.parametrize("first", [0.0, 1e-30, 1e-5, 1e-2, 1.0, 1e4])
def test_a_tensor_at_another_scale_arrives_and_starves_no_other(first: float) -> None:
    """LayerScale, norm shifts, LoRA's B, small heads begin at zero or near it, and must grow; one shrinks."""
    random = np.random.default_rng(0)
    layout = Layout((TensorSpec("scale", (64,), "float32"), TensorSpec("weight", (10_000,), "float32")))
    begin = np.concatenate([np.full(64, first), random.normal(0, 0.05, 10_000)]).astype(np.float32)
    goal = begin + random.normal(0, 0.02, 10_064).astype(np.float32)
    goal[:64] = random.uniform(0.5, 1.5, 64)
    versions = Versions(begin, b"", layout, Downlink(0.005))
    advanced(versions, goal, 100)
    np.testing.assert_allclose(versions.held.floats(layout)[:64], goal[:64], rtol=0.1)
    advanced(versions, goal, 1500)
    assert off(versions, goal, layout) <= 2.0**-17


def test_a_tensor_that_grows_and_grows_costs_clients_no_snapshot() -> None:
    """As with Adam on clients: the head grows on and on. Clients that are far behind get a delta, too."""
    random = np.random.default_rng(1)
    layout = Layout((TensorSpec("body", (2000,), "float32"), TensorSpec("head", (400,), "float32")))
    master = random.normal(0, 1e-3, layout.size).astype(np.float32)
    versions = Versions(master, b"", layout, Downlink(0.05))
    steady = random.standard_normal(layout.size).astype(np.float32)
    for version in range(1, 10):
        master = master + 1e-3 * steady * np.where(np.arange(layout.size) < 2000, 0.1, 4.0**version).astype(np.float32)
        versions.advance(master, b"")
    assert [len(versions.download(base).grid) // 10 for base in (8, 0)] == [0, 4]  # a change of the grid is 10 bytes
    for base in range(9):
        download = versions.download(base)
        assert download.base == base and len(download.delta) < 1200
    assert len(versions.download(-5).delta) > 5000  # a snapshot, for comparison


def test_a_tensor_that_shrinks_gets_a_finer_grid_without_loss() -> None:
    pair, random = Pair(None), np.random.default_rng(2)
    pair.contact(heard=True)
    coarse = pair.versions.held.grid
    pair.master = (pair.master * np.float32(1e-6)).astype(np.float32)
    for _ in range(300):
        pair.versions.advance(pair.master, b"")
        if random.random() < 0.2:
            pair.contact(heard=True)
    assert all(
        after < before for after, before in zip(pair.versions.held.grid.exponents, coarse.exponents, strict=True)
    )
    assert off(pair.versions, pair.master, LAYOUT) <= 2.0**-17 and pair.asked == 0


def test_entries_that_the_grid_cannot_bring_nearer_take_no_places() -> None:
    """A tensor of 1e4 is off by less than half its spacing, which is more than all that another tensor lacks."""
    layout = Layout((TensorSpec("large", (1000,), "float32"), TensorSpec("small", (100,), "float32")))
    random = np.random.default_rng(3)
    begin = np.concatenate([random.uniform(-1e4, 1e4, 1000), np.zeros(100)]).astype(np.float32)
    goal = np.concatenate([begin[:1000], random.uniform(-1e-4, 1e-4, 100)]).astype(np.float32)
    versions = Versions(begin, b"", layout, Downlink(0.01))
    assert np.abs(begin - versions.held.floats(layout)).max() > 1e-3
    advanced(versions, goal, 150)
    assert off(versions, goal, layout) <= 2.0**-17


def test_an_entry_moves_by_a_magnitude_of_its_own_where_the_common_one_is_of_no_use() -> None:
    """A few entries of 100 among many of 0.001: none gets farther from master, and the large ones are there soon."""
    goal = np.full(LAYOUT.size, 1e-3, np.float32)
    goal[:4] = 100
    versions = Versions(np.zeros(LAYOUT.size, np.float32), b"", LAYOUT, Downlink(0.05))
    before = goal
    for _ in range(4):
        versions.advance(goal, b"")
        after = np.abs(goal - versions.held.floats(LAYOUT))
        assert (after <= before).all()
        before = after
    assert before[:4].max() < 1


def test_what_no_common_unit_can_hold_goes_down_exactly() -> None:
    """Changes of 1e-12 and of 1 in one delta, and weights of 1e-12 and of 1 in one snapshot."""
    layout = Layout((TensorSpec("large", (50,), "float32"), TensorSpec("small", (50,), "float32")))
    random = np.random.default_rng(4)
    scales = np.repeat([1.0, 1e-12], 50)
    begin, goal = (random.standard_normal(100) * scales for _ in range(2))
    versions = Versions(begin.astype(np.float32), b"", layout, Downlink(1.0, levels=255))
    client = ReplicaWithUndo(versions.held)
    advanced(versions, goal.astype(np.float32), 2)
    for base in (0, -5):  # the version of the client, and one that is kept no longer
        download = versions.download(base)
        order = orders.Order("test", 1, 1, 0, versions.held.version, 0, download)
        after = replica.receive(order, download, client, RecordDict(), layout)
        assert after is not None and after.replica.tag(0) == versions.tag


def test_a_change_beyond_float32_takes_a_snapshot() -> None:
    pair = Pair(None)
    pair.master = np.full(LAYOUT.size, MOST, np.float32)
    advanced(pair.versions, pair.master, 80)
    pair.contact(heard=True)
    advanced(pair.versions, -pair.master, 80)
    assert off(pair.versions, -pair.master, LAYOUT) < 2.0**-17
    pair.contact(heard=True)
    assert pair.forms == [None, FROM_NOTHING] and pair.asked == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_master_that_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    versions = Versions(INITIAL.copy(), b"", LAYOUT, Downlink(0.05))
    tag, master = versions.tag, INITIAL.copy()
    master[[3, 700]] = bad, MOST
    with pytest.raises(NonFiniteError, match="clients cannot be given"):
        versions.advance(master, b"")
    assert versions.tag == tag == versions.held.tag(0)
    with pytest.raises(NonFiniteError, match="clients cannot be given"):
        Versions(master, b"", LAYOUT, Downlink(0.05))


def test_a_damaged_model_is_found_and_replaced() -> None:
    pair, random = Pair(INITIAL), np.random.default_rng(4)
    pair.contact(heard=True)
    assert pair.kept is not None
    integers = pair.kept.replica.integers.copy()
    integers[3] += 1  # as after a bit flip on the disk
    pair.kept = ReplicaWithUndo(pair.kept.replica._replace(integers=integers))
    pair.master = walk(pair.master, random)
    pair.versions.advance(pair.master, b"")
    pair.contact(heard=True)  # checks that it holds the right one
    assert pair.forms[-2:] == [0, 0]  # the delta did not fit; the second one starts from version 0


@pytest.mark.parametrize(("key", "bad"), [("density", 0), ("density", 1.1), ("levels", 0), ("levels", 256)])
def test_a_downlink_out_of_range_is_refused(key: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^Downlink: {key}: got "):
        Downlink(**{key: bad})
