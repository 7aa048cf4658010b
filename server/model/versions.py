"""Versions of the held model, and deltas that bring a client from one of them to the newest.

From one version to the next only the largest entries of master - held change, all by the same magnitude: this is top-k
and ternary quantization of the download, and master - held is its residual. Magnitudes are 2^j or 1.5 * 2^j, so that
the sum of several versions is made of few, small multiples of one unit (`dyadic`). An entry that this would bring no
nearer to master, or hardly, moves by a magnitude of its own, and one that the grid can bring no nearer takes no place.

Where master leaves the grid of a tensor, or has shrunk far below it, the next version has another spacing there
(`Regrid`): held moves to the new grid first, and changes then. The changes that are kept are brought to the new grid,
too. So a client of any of their versions gets to the newest one by the same two steps: its own integers to the new
grid, by the same rule, and one delta.

A version belongs to one mask. Changes are kept by their positions in the vector without a mask, and an entry that a new
mask drops counts as a change to zero. So a delta from a version of an older mask is the difference from its surviving
entries, whatever the masks between were.
"""

from logging import WARNING
from typing import Any, NamedTuple

import numpy as np
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.compression.encoders import cafe
from fedpress.compression.encoders.top_k import largest
from fedpress.compression.errors import NonFiniteError
from fedpress.compression.messages.orders import Download
from fedpress.compression.settings import STRICT, Field, dataclass
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, Vector, is_finite
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.replica import (
    LIMIT,
    FixedPoint,
    Integers,
    KeptReplica,
    Regrid,
    Replica,
    pack_regrids,
    rescaled,
)
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads
from fedpress.compression.wire.values import DYADIC, FLOAT32
from fedpress.server.model.settings import DownlinkSettings

FROM_NOTHING = -1
"""The version before the first: every weight is zero. A delta from it is a snapshot, in units of the newest grid."""
_INITIAL = -2
"""In place of a version: version 0 as a client makes it within the newest mask. Its delta names version 0."""
_HISTORY = 0.5
"""Limit of the changes that are kept, in entries, as a fraction of the model's."""
_OUTLIER = 8
"""Multiple of the common magnitude from which on an entry moves by one of its own."""
_TOO_FINE = 0.001
"""Fraction of a tensor's weights that may be too small for its grid before the log says so."""


@dataclass(frozen=True, config=STRICT)
class Downlink(DownlinkSettings):
    """Compression of the download."""

    agreed_initial: bool = Field(
        default=False,
        description="Whether clients can make version 0 by themselves (`compress(initial=...)`): it is offered by its"
        " tag, and sent to those only that have another one or none. False: it is sent to everybody.",
    )
    prediction: float = Field(
        default=0.0,
        description="Factor of what the download predicts of an update; 0: nothing. Other than 0 exactly where clients"
        " use `cafe.aggregate_feedback`, and then the same as there.",
    )


class Delta(NamedTuple):
    """Encoded difference of the newest version from an earlier one."""

    base: int  # version that it is added to; `FROM_NOTHING` for a snapshot
    payload: bytes  # empty: the client has the newest version
    support: Positions | None = None  # positions that it changes; None: all, or the payload is empty
    initial: bool = False  # `base` is version 0 as a client makes it within the newest mask
    grid: bytes = b""  # changes of the grid since `base`

    @property
    def length(self) -> int:
        """Length of payload and changes of the grid in bytes."""
        return len(self.payload) + len(self.grid)


class Change(NamedTuple):
    """Difference of a version from the one before."""

    positions: NDArray[np.int64]  # in the vector without a mask, rising
    steps: NDArray[np.int32]  # in units of the newest grid

    @classmethod
    def of(cls, kept: "KeptChange", layout: Layout) -> "Change":
        """Read a change that `kept` wrote."""
        update = payloads.decode(kept.payload, SideInfo(layout.full))
        positions = update.positions if isinstance(update, Sparse) else np.arange(update.size)
        return cls(positions, update.values.astype(np.int32))

    def kept(self, layout: Layout) -> "KeptChange":
        """Return the change as the bytes of a payload: an eighth of the memory, for what is seldom needed."""
        values = self.steps.astype(np.float32)  # below 2^24, hence exact
        update = Sparse(self.positions, values, layout.full.size)
        payload, decoded = payloads.pack(update, layout.full, DYADIC)
        if not np.array_equal(decoded.values, values):  # they lie too far apart for one unit
            payload = payloads.pack(update, layout.full, FLOAT32).payload
        return KeptChange(len(values), payload)


class KeptChange(NamedTuple):
    """A change in the memory of its payload."""

    entries: int
    payload: bytes


class _Moves(NamedTuple):
    """What a version changes."""

    positions: Positions
    steps: NDArray[np.int32]
    all_nearer: bool  # whether the grid reaches master at all of them, and has a point nearer to it than held


class VersionsState(NamedTuple):
    """State of `Versions`.

    Attributes:
        held: the newest version.
        origin: tag of version 0; empty: it is sent to everybody.
        changes: changes by the version that they led to.
        regrids: changes of the grid since version 0, in their order.
        buffers_since: for each buffer, the version in which it last changed.
    """

    held: Replica
    origin: bytes
    changes: dict[int, KeptChange]
    regrids: list[Regrid]
    buffers_since: list[int]


class Versions:
    """The held model, with the changes that made it.

    Law: a client that applies a download holds `held`, bit for bit, whatever version it comes from. And held follows:
    while master stays what it is, it arrives there, up to the rounding of grids on which the largest magnitude of a
    tensor takes at least 17 bits. No finite master is out of reach.

    Args:
        initial: parameters of the initial model, those outside the mask too, float32 (n,).
        buffers: the initial buffers, as `buffer_codec.pack` writes them.
        layout: layout of both, within the first mask.
        downlink: density and levels of a version, and whether clients can make version 0.
        mask_version: version of the mask of version 0.
        frozen: digest of the parameters that are not trained (`flatten.digest`).

    Attributes:
        held: the newest version.
        tag: digest by which a client proves that it has the newest version.

    Raises:
        ValueError: the downlink is out of range.
        NonFiniteError: a parameter is NaN or infinite.
    """

    def __init__(
        self,
        initial: Vector,
        buffers: bytes,
        layout: Layout,
        downlink: Downlink,
        mask_version: int = 0,
        frozen: bytes = b"",
    ) -> None:
        if not 0 < downlink.density <= 1 or downlink.levels < 1:
            raise ValueError(
                f"downlink: density {downlink.density} and levels {downlink.levels}, expected a density above 0 and at "
                "most 1, such as 0.005, and at least 1 level"
            )
        self._layout = layout
        self._mask_version = self._first_mask_version = mask_version
        self._downlink = downlink
        self._changes: dict[int, KeptChange] = {}  # version -> change from the one before
        self._fallen = Change(np.empty(0, np.int64), np.empty(0, np.int32))  # entries that the next version drops
        self._regrids: list[Regrid] = []
        self._deltas: dict[int, Delta] = {}  # base -> the delta from there to the newest version
        self._side_info: dict[tuple[int, bytes, int], SideInfo] = {}  # base, delta and version of a download
        self._frozen = frozen
        first = Replica.initial(initial, layout.full, buffers)
        _warn_of_too_fine(initial, first, layout.full)
        self._initial: Replica | KeptReplica | None = first if downlink.agreed_initial else None
        self._origin = first.tag(0, frozen) if downlink.agreed_initial else b""
        self.held = first.within(layout.mask)
        self._buffers_since = [0] * len(layout.buffers)  # version in which each last changed
        self.tag = self.held.tag(mask_version, frozen)

    def change_mask(self, layout: Layout, mask_version: int) -> None:
        """Move to another mask; the next version is its first, and must follow before any download.

        Args:
            layout: layout of the same tensors within the new mask.
            mask_version: version of the new mask.
        """
        change = self._layout.change_to(layout)
        self._fallen = Change(self._layout.whole(change.removed), -self.held.integers[change.removed])
        self.held = self.held.remapped(change)
        self._layout, self._mask_version = layout, mask_version
        self._deltas, self._side_info = {}, {}

    def advance(self, master: Vector, buffers: bytes, downlink: Downlink | None = None) -> None:
        """Make the next version, nearer to `master` in the entries that differ most.

        Args:
            master: parameters, float32 (n,).
            buffers: buffers of the next version.
            downlink: density and levels of this one version; None: those of all versions.

        Raises:
            NonFiniteError: master holds NaN or infinity; the newest version stays what it is.
        """
        settings, layout = downlink or self._downlink, self._layout
        self._put_initial_aside()
        moves = self._moves(self._missing(master), settings)
        if not moves.all_nearer:
            self._move_to_grid(self.held.grid.fitted(master, self.held.integers, layout))
            moves = self._moves(self._missing(master, unless_arrived=True), settings)
        self._keep(layout.whole(moves.positions), moves.steps)  # before the held model is copied
        held = self.held
        changed = buffer_codec.changes(buffers, held.buffers, layout)
        since = zip(self._buffers_since, changed, strict=True)
        self._buffers_since = [held.version + 1 if new else version for version, new in since]
        integers = held.integers.copy()
        integers[moves.positions] += moves.steps
        self._take(Replica(held.version + 1, held.grid, integers, buffers))

    def _keep(self, positions: Positions, steps: NDArray[np.int32]) -> None:
        """Keep the change to the next version, with what has fallen out of the mask, and drop the oldest ones."""
        positions = np.concatenate([positions, self._fallen.positions])
        steps = np.concatenate([steps, self._fallen.steps])
        self._fallen = Change(self._fallen.positions[:0], self._fallen.steps[:0])
        room = _HISTORY * self._layout.size - len(steps)
        while self._changes and (room < 0 or sum(change.entries for change in self._changes.values()) > room):
            del self._changes[min(self._changes)]
        if room >= 0:
            order = np.argsort(positions, kind="stable")
            change = Change(positions[order], steps[order])
            self._changes[self.held.version + 1] = change.kept(self._layout)

    def delta(self, base: int | None, agreed: bool = True) -> Delta | None:
        """Return the smallest delta to the newest version.

        Args:
            base: version that the client has, None if it has none.
            agreed: whether to take it that the client can make version 0, where clients of this downlink can.

        Returns:
            The delta. It may start from version 0, where the client can make that, or from zeros. None for a client
            without a version that cannot: it needs the arrays, names and shapes included.
        """
        if base == self.held.version:
            return Delta(base, b"")
        candidates = []
        if base is not None:
            known = self._encoded(base) if base + 1 in self._changes else None
            candidates.append(known or self._encoded(FROM_NOTHING))
        if self._initial is not None and agreed:
            candidates.append(self._encoded(self._first))
        return min(filter(None, candidates), key=lambda delta: delta.length, default=None)

    def download(self, base: int | None, whole: bool = False, agreed: bool = True) -> Download:
        """Return the newest version as an order brings it.

        Args:
            base: version that the client has, None if it has none.
            whole: whether the arrays go with the order, as the client lacks their names and shapes.
            agreed: as for `delta`.
        """
        delta = None if whole else self.delta(base, agreed)
        if delta is None:
            in_arrays = self._buffers(self.held.version)
            return Download(self.tag, None, self._rounding(), self.held.grid.pack(), in_arrays)
        at_hand = base == 0 and self._first == 0
        origin = self._origin if delta.initial and not at_hand else b""
        if delta.base == FROM_NOTHING:
            origin = self.held.grid.pack()
        return Download(self.tag, delta.base, delta.payload, origin, self._buffers(delta.base), delta.grid)

    def _buffers(self, base: int) -> bytes:
        """Return the buffers that have changed since a version; all of them in a snapshot."""
        changed = [since > base for since in self._buffers_since]
        return buffer_codec.pack_changes(self.held.buffers, changed, self._layout)

    def side_info(self, download: Download | None, version: int) -> SideInfo:
        """Return the side information of an update, the same that its client had.

        Args:
            download: download that brought the client to the version it trained from, which may be an earlier one.
            version: that version.

        Returns:
            The positions that the delta changed, against which those of the update are coded; with `prediction`, also
            the update that the delta predicts (`cafe.predictor`).
        """
        if download is None or download.base in (None, FROM_NOTHING) or not download.delta:
            return SideInfo(self._layout)
        key = download.base, download.delta, version
        if key not in self._side_info:
            newest = self._deltas.get(self._first if download.origin else download.base)
            known = newest is not None and newest.payload == download.delta
            predicts = self._downlink.prediction != 0
            if predicts or not known:
                delta = payloads.decode(download.delta, SideInfo(self._layout))
            reference = newest.support if newest and known else delta.positions if isinstance(delta, Sparse) else None
            predictor = cafe.predictor(delta, download.base, version) if predicts else None
            self._side_info[key] = SideInfo(self._layout, shared_positions=reference, predictor=predictor)
        return self._side_info[key]

    @property
    def offers_initial(self) -> bool:
        """Whether version 0 is offered by its tag to clients that hold nothing."""
        return self._initial is not None

    def state(self) -> VersionsState:
        """Return the newest version, the changes that are kept, and those of the grid."""
        return VersionsState(self.held, self._origin, self._changes, self._regrids, self._buffers_since)

    def release(self) -> None:
        """Give back the memory of the newest version and the changes: `restore` must follow."""
        self._put_initial_aside()
        self.held = self.held._replace(integers=self.held.integers[:0].copy())
        self._changes, self._deltas, self._side_info = {}, {}, {}

    def restore(self, state: VersionsState, layout: Layout, mask_version: int) -> None:
        """Take up a state.

        Where these versions began with another version 0 than those of the state, it is no longer offered: clients
        that hold nothing are sent the whole model.

        Args:
            state: state of the versions of this model.
            layout: layout within the mask of that state.
            mask_version: version of that mask.
        """
        self._layout, self._mask_version = layout, mask_version
        if self._origin != state.origin:
            if self._origin and state.origin:
                log(
                    WARNING,
                    "version 0 as it is made here, %s, is not that of the checkpoint, %s (another PyTorch or processor,"
                    " or a model() that differs from call to call): it is no longer offered to new clients, which are"
                    " sent the whole model",
                    self._origin.hex(),
                    state.origin.hex(),
                )
            self._initial, self._origin = None, state.origin
        self._take(state.held)
        self._changes, self._regrids, self._buffers_since = state.changes, state.regrids, state.buffers_since

    def _put_initial_aside(self) -> None:
        """Keep version 0 in memory of its own, as the held model is about to differ from it."""
        if isinstance(self._initial, Replica):
            self._initial = self._initial.kept()

    def _rounding(self) -> bytes:
        """Return the delta from the arrays, as a message brings them, to the newest version; empty: they are the same.

        Weights of another dtype than float32, such as float16, are rounded in the arrays.
        """
        layout, held = self._layout, self.held
        if all(spec.dtype == "float32" for spec in layout.parameters):
            return b""
        sent = flatten.flatten(flatten.unflatten(held.floats(layout), layout), layout)
        difference = held._replace(integers=held.grid.integers(sent, layout)).delta_to(held.integers, layout)
        return payloads.pack(difference, layout, DYADIC).payload if len(difference.positions) else b""

    def _take(self, held: Replica) -> None:
        self.held = held
        self.tag = held.tag(self._mask_version, self._frozen)
        self._deltas, self._side_info = {}, {}

    def _missing(self, master: Vector, *, unless_arrived: bool = False) -> Vector:
        """Return master - held, float32 (n,); a difference beyond float32 is the largest number that it has.

        Args:
            master: parameters, float32 (n,).
            unless_arrived: whether the difference is zero where the grid has no point nearer to master than held.
        """
        missing = self.held.floats(self._layout)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(master, missing, out=missing)
        if not is_finite(missing):
            if not is_finite(master):
                raise NonFiniteError(
                    "master holds NaN or infinity, which clients cannot be given; did training diverge?"
                )
            np.nan_to_num(missing, copy=False)
        if unless_arrived:
            for block, arrived in self.held.grid.agrees(master, self.held.integers, self._layout):
                missing[block][arrived] = 0
        return missing

    def _move_to_grid(self, grid: FixedPoint) -> None:
        """Bring the held model to another grid, and with it the changes that are kept, from the newest to the oldest.

        Law: where replica + change is the next replica, so it is once all three are on the new grid.
        """
        before, layout = self.held, self._layout
        regrids = before.grid.changes_to(grid, before.version + 1)
        if not regrids:
            return
        whole = np.zeros(layout.full.size, np.int32)  # entries outside the mask are zero since they were dropped
        whole[layout.whole(np.arange(layout.size))] = before.integers

        def moved(change: Change) -> Change:
            positions = change.positions
            spacings = before.grid.spacing(positions, layout.full), grid.spacing(positions, layout.full)
            newer = whole[positions]
            whole[positions] -= change.steps
            steps = rescaled(newer, *spacings) - rescaled(whole[positions], *spacings)
            kept = np.flatnonzero(steps)
            return Change(change.positions[kept], steps[kept])

        self._fallen = moved(self._fallen)
        for version in sorted(self._changes, reverse=True):
            self._changes[version] = moved(Change.of(self._changes[version], layout)).kept(layout)
        whole = np.empty(0, np.int32)  # before the held model is copied
        self._regrids = self._regrids + regrids
        self.held = before.regridded(regrids, layout)

    def _moves(self, missing: Vector, settings: DownlinkSettings) -> _Moves:
        """Return the entries that lack most, and the move of each: one spacing at least, within the grid."""
        positions = largest(missing, max(1, round(settings.density * len(missing))))
        if not len(positions):
            return _Moves(positions, np.empty(0, np.int32), all_nearer=True)
        lacking, integers = missing[positions].astype(np.float64), self.held.integers[positions]
        del missing  # of the size of the model; nobody else has it
        magnitudes = np.abs(lacking)
        unit = _dyadic(magnitudes.mean())
        wanted = unit * np.clip(np.rint(magnitudes / unit), 1, settings.levels)
        apart = (wanted > 2 * magnitudes) | (wanted * _OUTLIER < magnitudes)
        wanted[apart] = _dyadic(magnitudes[apart])
        spacing = self.held.grid.spacing(positions, self._layout)
        steps = np.copysign(np.maximum(np.rint(np.ldexp(wanted, -spacing)), 1), lacking)
        goal = np.rint(np.ldexp(lacking, -spacing) + integers)
        all_nearer = bool(((np.abs(goal) <= LIMIT) & (goal != integers)).all())
        moved = np.clip(integers + steps, -LIMIT, LIMIT).astype(np.int32)
        return _Moves(positions, moved - integers, all_nearer)

    @property
    def _first(self) -> int:
        """Base for a client that makes version 0: 0, or `_INITIAL` where version 0 had another mask."""
        return 0 if self._mask_version == self._first_mask_version else _INITIAL

    def _encoded(self, base: int) -> Delta | None:
        """Return the delta from a base; None where a difference is beyond float32."""
        if base not in self._deltas:
            if base == FROM_NOTHING:  # in units of the grid
                payload, support = payloads.pack_exact(self.held.integers, self._layout), None
            else:
                difference = self._difference(base)
                if not np.isfinite(difference.values).all():
                    return None
                support = difference.positions
                payload, decoded = payloads.pack(difference, self._layout, DYADIC)
                if not np.array_equal(decoded.values, difference.values):  # they lie too far apart for one unit
                    payload = payloads.pack(difference, self._layout, FLOAT32).payload
            initial = self._initial is not None and base == self._first
            start = 0 if initial else self.held.version if base == FROM_NOTHING else base
            grid = pack_regrids(regrid for regrid in self._regrids if regrid.version > start)
            self._deltas[base] = Delta(0 if initial else base, payload, support, initial, grid)
        return self._deltas[base]

    def _difference(self, base: int) -> Sparse:
        held, layout = self.held, self._layout
        if base == self._first and self._initial is not None:
            first = self._initial if isinstance(self._initial, Replica) else self._initial.whole()
            initial = first.within(layout.mask).regridded(self._regrids, layout)
            return initial.delta_to(held.integers, layout)
        before: Integers = held.integers.copy()
        for version in range(held.version, base, -1):
            change = Change.of(self._changes[version], layout)
            present, places = layout.present(change.positions)
            before[places] -= change.steps[present]
        return Replica(base, held.grid, before).delta_to(held.integers, layout)


def _dyadic(magnitudes: Any) -> Any:
    """Return the nearest of 2^j and 1.5 * 2^j to a magnitude, or to each of an array of them, by ratio.

    >>> _dyadic(np.array([0.9, 1.3, 100.0])).tolist()
    [1.0, 1.5, 96.0]
    """
    mantissas, exponents = np.frexp(magnitudes)  # 0.5 to below 1
    bounds = np.sqrt([0.5 * 0.75, 0.75 * 1.0])
    return np.ldexp(np.array([0.5, 0.75, 1.0])[np.searchsorted(bounds, mantissas)], exponents)


def _warn_of_too_fine(weights: Vector, initial: Replica, layout: Layout) -> None:
    """Log tensors that lose weights: these are far smaller than the tensor's largest one, and become zero."""
    for spec, start, exponent in zip(layout.parameters, layout.offsets, initial.grid.exponents, strict=False):
        part = slice(start, start + spec.size)
        count = int(np.count_nonzero((weights[part] != 0) & (initial.integers[part] == 0)))
        if count > _TOO_FINE * spec.size:
            log(
                WARNING,
                "%d of %d weights of %r are below 2^%d, half the step of its grid, and begin as zero where clients"
                " hold the model: its largest weight is 2^20 times as large; `downlink: null` sends them as they are",
                count, spec.size, spec.name, exponent - 1,
            )  # fmt: skip
