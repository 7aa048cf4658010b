"""Versions and their deltas: whatever is lost, a client that gets a download holds the server's model, bit for bit."""

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.client.state import replica
from fedpress.client.state.replica import ReplicaWithUndo
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
INITIAL = np.random.default_rng(5).normal(0, 0.05, LAYOUT.size).astype(np.float32)
VERSION_0 = Replica.initial(INITIAL, LAYOUT)


def walk(master: Vector, random: np.random.Generator) -> Vector:
    step: Vector = (random.standard_normal(LAYOUT.size) ** 3 * 1e-3).astype(np.float32)
    return master + step


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
        self.forms: list[int | None] = []

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
        assert after is not None and after.replica.tag(0) == self.versions.tag
        np.testing.assert_array_equal(after.replica.integers, self.versions.held.integers)
        self.kept = after
        if heard:
            self.confirmed = self.versions.held.version


OWN = st.sampled_from([None, INITIAL, INITIAL[::-1].copy()])


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("heard lost away forgets taught".split()), max_size=40),
    OWN,
    st.sampled_from([1, 7]),
)
def test_a_client_holds_what_the_server_holds_whatever_was_lost(
    fates: list[str], own: Vector | None, levels: int
) -> None:
    pair, random = Pair(own, levels), np.random.default_rng(len(fates))
    for fate in fates:
        pair.master = walk(pair.master, random)
        pair.versions.advance(pair.master, b"", Downlink(0.7, levels=15) if fate == "taught" else None)
        if fate == "forgets":
            pair.kept = None
        elif fate != "away":
            pair.contact(heard=fate == "heard")


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

    def step(self, random: np.random.Generator) -> None:
        self.master = self.master + (random.standard_normal(self.layout.size) ** 3 * 1e-3).astype(np.float32)
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
@given(st.lists(st.sampled_from("heard heard lost away forgets change".split()), max_size=40), OWN, st.booleans())
def test_a_client_holds_what_the_server_holds_whatever_became_of_the_mask(
    fates: list[str], own: Vector | None, masked: bool
) -> None:
    pair, random = MaskedPair(own, masked), np.random.default_rng(len(fates))
    for fate in fates:
        if fate == "change":
            pair.change(random)
        pair.step(random)
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
        assert sum(len(change.steps) for change in pair.versions.state().changes.values()) <= LAYOUT.size / 2


def test_versions_move_towards_the_master() -> None:
    pair, random = Pair(INITIAL), np.random.default_rng(3)
    target = walk(pair.master, random)
    missing = [float(np.linalg.norm(target - pair.versions.held.floats(LAYOUT)))]
    for _ in range(100):
        pair.versions.advance(target, b"")
        missing.append(float(np.linalg.norm(target - pair.versions.held.floats(LAYOUT))))
    assert all(after <= before for before, after in zip(missing, missing[1:], strict=False))
    assert missing[-1] < 0.02 * missing[0]


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
