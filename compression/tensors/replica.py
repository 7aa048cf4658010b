"""The model that clients of a version hold, the same bits on every device.

A held model is an integer times a power of two for every parameter, one power for each tensor, and every integer is
below 2^23 in magnitude, so that float32 holds it exactly, and the difference of any two. A delta is a change of the
integers. Merging deltas and undoing them is integer addition: one merged delta and a chain of single ones give the same
bits, which sums of floats do not.

The power of a tensor is not for ever. A tensor that outgrows it gets a coarser one in a new version, one that has
shrunk a finer one (`Regrid`), and all that hold the model bring their integers to it by the same rule (`rescaled`).

Version 0 is the model that the user gives. A client that can make the same one by itself (the same weights file, the
same initialization under the same seed) needs no first copy of it; the tag proves that it is the same, since torch's
initialization differs between processors and releases.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError, NonFiniteError
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import BLOCK, Layout, Vector
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.tensors.update import Sparse, Update

Integers: TypeAlias = NDArray[np.int32]

LIMIT = 2**23 - 1
_BITS = 20  # that a tensor's largest magnitude takes on a new grid: it can grow to 8 times that
_FEWEST_BITS = 17  # with fewer it should have a finer grid: it has shrunk to an eighth, or began at zero
_FINEST, _COARSEST = -149, 105  # the spacing of float32 itself near zero; with LIMIT nearly its largest number
_SPACING = struct.Struct("<h")
_REGRID = struct.Struct("<IIh")  # version, tensor, exponent
TAG_BYTES = 8
_KEPT_BYTES = 3
"""Bytes of an integer of a `KeptReplica`."""


class ReplicaError(FedpressError, ValueError):
    """A replica and the bytes or the delta that should change it do not fit each other."""


class Regrid(NamedTuple):
    """Another spacing of one tensor, from one version on.

    Attributes:
        version: The first version on the new grid.
        tensor: Number of the tensor in the layout.
        exponent: The new spacing is 2^exponent.
    """

    version: int
    tensor: int
    exponent: int


class FixedPoint(NamedTuple):
    """The spacing of a held model's weights: 2^exponent for each parameter of the layout.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (2,), "float32"), TensorSpec("bias", (1,), "float32")))
    >>> grid = FixedPoint.of(np.array([0.5, -0.3, 0], np.float32), layout)
    >>> grid.exponents, grid.integers(np.array([0.5, -0.3, 2**-19], np.float32), layout).tolist()
    ((-20, -20), [524288, -314573, 2])
    """

    exponents: tuple[int, ...]

    @classmethod
    def of(cls, vector: Vector, layout: Layout) -> "FixedPoint":
        """Return the grid on which the largest magnitude of each tensor takes 20 bits, with room to grow 8 times.

        Args:
            vector: Weights, float32, shape (n,).
            layout: The layout of the vector.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
        """
        peaks = [_peak(vector[part]) or 0.5 for part in _parts(layout)]
        return cls(tuple(_exponent(peak) for peak in peaks))

    def fitted(self, vector: Vector, integers: Integers, layout: Layout) -> "FixedPoint":
        """Return the grid to go on with from a model on this one towards other weights.

        A tensor that reaches beyond the grid gets a coarser spacing, one whose largest magnitude takes less than 17
        bits a finer one: its largest magnitude takes 20 bits then. All others, most of the time, keep theirs.

        Args:
            vector: The other weights, float32, shape (n,).
            integers: The model in units of this grid, shape (n,).
            layout: The layout of both.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
        """
        exponents = list(self.exponents)
        for tensor, (part, exponent) in enumerate(zip(_parts(layout), self.exponents, strict=True)):
            peak = _peak(vector[part])
            largest = max(peak, float(np.ldexp(_peak(integers[part]), exponent)))
            outgrown = np.rint(np.ldexp(peak, -exponent)) > LIMIT
            if outgrown or 0 < largest < np.ldexp(1.0, exponent + _FEWEST_BITS - 1):
                exponents[tensor] = _exponent(largest)
        return FixedPoint(tuple(exponents))

    def integers(self, vector: Vector, layout: Layout) -> Integers:
        """Return the nearest points of the grid as integers, shape (n,), clipped to its range.

        Args:
            vector: Weights, float32, shape (n,).
            layout: The layout of the vector.
        """
        integers = np.empty(layout.size, np.int32)
        for part, exponent in zip(_parts(layout), self.exponents, strict=True):
            for block in _blocks(part):
                integers[block] = self._nearest(vector[block], exponent)
        return integers

    def agrees(self, vector: Vector, integers: Integers, layout: Layout) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
        """Yield block after block, whether its weights are nearest to these points of the grid.

        Args:
            vector: Weights, float32, shape (n,).
            integers: Points of the grid, shape (n,).
            layout: The layout of both.
        """
        for part, exponent in zip(_parts(layout), self.exponents, strict=True):
            for block in _blocks(part):
                yield block, self._nearest(vector[block], exponent) == integers[block]

    @staticmethod
    def _nearest(weights: Vector, exponent: int) -> NDArray[np.float64]:
        scaled = np.ldexp(weights.astype(np.float64), -exponent)
        np.rint(scaled, out=scaled)
        return np.clip(scaled, -LIMIT, LIMIT, out=scaled)

    def floats(self, integers: Integers, layout: Layout) -> Vector:
        """Return the weights that integers stand for, float32, shape (n,), without rounding.

        Args:
            integers: Points of the grid, shape (n,).
            layout: The layout of the vector.
        """
        weights = np.empty(layout.size, np.float32)
        for tensor, part in enumerate(_parts(layout)):
            self.floats_of(tensor, integers[part], weights[part])
        return weights

    def floats_of(self, tensor: int, integers: Integers, out: Vector | None = None) -> Vector:
        """Return the weights that integers of one tensor stand for, float32, shape (m,), without rounding.

        Args:
            tensor: Number of the tensor in the layout.
            integers: Points of the grid, shape (m,).
            out: Array for the result; None: a new one.
        """
        spacing = np.float32(2.0 ** self.exponents[tensor])
        return np.multiply(integers, spacing, out=out, dtype=np.float32, casting="unsafe")

    def changes_to(self, grid: "FixedPoint", version: int) -> list[Regrid]:
        """Return the changes with which another grid follows this one in a version."""
        pairs = enumerate(zip(self.exponents, grid.exponents, strict=True))
        return [Regrid(version, tensor, after) for tensor, (before, after) in pairs if before != after]

    def spacing(self, positions: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
        """Return the exponents of the spacing at some positions, shape (k,).

        Args:
            positions: Positions in the vector, shape (k,).
            layout: The layout of the vector.
        """
        tensors = np.searchsorted(layout.offsets[1:], positions, side="right")
        return np.array(self.exponents, np.int64)[tensors]

    def pack(self) -> bytes:
        """Return the grid as bytes."""
        return b"".join(_SPACING.pack(exponent) for exponent in self.exponents)

    @classmethod
    def unpack(cls, data: bytes, layout: Layout) -> "FixedPoint":
        """Read the grid that `pack` wrote.

        Args:
            data: Bytes of any origin.
            layout: The layout of the vector.

        Raises:
            ReplicaError: The grid is not one of as many tensors, or a spacing none of float32.
        """
        if len(data) != _SPACING.size * len(layout.parameters):
            raise ReplicaError(f"a grid of {len(data)} bytes does not fit {len(layout.parameters)} tensors")
        return cls(_checked(exponent for (exponent,) in _SPACING.iter_unpack(data)))


def pack_regrids(regrids: Iterable[Regrid]) -> bytes:
    """Return changes of the grid as bytes: u32 version, u32 tensor, i16 exponent for each."""
    return b"".join(_REGRID.pack(*regrid) for regrid in regrids)


def unpack_regrids(data: bytes, layout: Layout) -> list[Regrid]:
    """Read the changes that `pack_regrids` wrote.

    Args:
        data: Bytes of any origin.
        layout: The layout of the model.

    Raises:
        ReplicaError: They are cut off, or of another model.
    """
    if len(data) % _REGRID.size:
        raise ReplicaError(f"changes of the grid take {_REGRID.size} bytes each, these are {len(data)} in all")
    regrids = [Regrid(*fields) for fields in _REGRID.iter_unpack(data)]
    if any(regrid.tensor >= len(layout.parameters) for regrid in regrids):
        raise ReplicaError(f"a change of the grid is of a tensor beyond the {len(layout.parameters)} of the model")
    _checked(regrid.exponent for regrid in regrids)
    return regrids


def rescaled(integers: Integers, before: int | NDArray[np.int64], after: int | NDArray[np.int64]) -> Integers:
    """Return integers in units of another spacing: the nearest ones, halves upwards, clipped to the range of a grid.

    Integers only, hence the same on every device.

    Args:
        integers: In units of 2^before, shape (n,), at most `LIMIT` in magnitude.
        before: The exponent of their spacing, one for all or one for each, shape (n,).
        after: The exponent of the new spacing, likewise.

    >>> integers = np.array([5, 6, 7, -6, LIMIT], np.int32)
    >>> rescaled(integers, 0, 2).tolist(), rescaled(integers, 0, -1).tolist()
    ([1, 2, 2, -1, 2097152], [10, 12, 14, -12, 8388607])
    """
    shift = np.clip(np.subtract(after, before), -24, 24)  # further shifts give no other results
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    half = np.left_shift(1, right) >> 1
    moved = integers.astype(np.int64)
    moved += half
    moved >>= right
    moved <<= left
    return np.clip(moved, -LIMIT, LIMIT, out=moved).astype(np.int32)


class Replica(NamedTuple):
    """The model of one version as a client holds it.

    Attributes:
        version: Number of the server's steps since version 0.
        grid: Spacing of the weights.
        integers: Weights in units of the grid, shape (n,); read only.
        buffers: Buffers as `buffer_codec.pack` writes them.
    """

    version: int
    grid: FixedPoint
    integers: Integers
    buffers: bytes = b""

    @classmethod
    def initial(cls, vector: Vector, layout: Layout, buffers: bytes = b"") -> "Replica":
        """Return version 0 of a model, the same from the same weights wherever it is made.

        Args:
            vector: Weights, float32, shape (n,).
            layout: The layout of the vector. Without a mask, so that the grid is the same whatever the mask.
            buffers: The buffers, as `buffer_codec.pack` writes them.
        """
        grid = FixedPoint.of(vector, layout)
        return cls(0, grid, grid.integers(vector, layout), buffers)

    def within(self, mask: Mask | None) -> "Replica":
        """Return the part of a model without a mask that is within one."""
        return self if mask is None else self._replace(integers=self.integers[mask.positions])

    def floats(self, layout: Layout) -> Vector:
        """Return the weights, float32, shape (n,)."""
        return self.grid.floats(self.integers, layout)

    def readers(self, layout: Layout) -> dict[str, Callable[[], NDArray[Any]]]:
        """Return for each parameter, by name, a function that makes its array anew each time.

        Args:
            layout: The layout of the vector.
        """
        return flatten.readers(lambda tensor, part: self.grid.floats_of(tensor, self.integers[part]), layout)

    def changed(
        self, delta: Update, version: int, buffers: bytes, layout: Layout, *, in_place: bool = False
    ) -> "Replica":
        """Return the replica of another version: the weights plus a delta.

        Args:
            delta: Changes of the weights, whole multiples of the grid's spacing.
            version: The new version.
            buffers: Buffers of the new version.
            layout: The layout of the vector.
            in_place: Whether the integers of this replica are overwritten, in part also where that fails.

        Raises:
            ReplicaError: A change is no multiple of the spacing, or the result leaves the grid.
        """
        integers = self.integers if in_place else self.integers.copy()
        for positions, values in _entries(delta):
            steps = np.ldexp(values.astype(np.float64), -self.grid.spacing(positions, layout))
            moved = integers[positions] + steps
            if (steps != np.rint(steps)).any() or (np.abs(moved) > LIMIT).any():
                raise ReplicaError(f"a delta to version {version} leaves the grid; it was made for another model")
            integers[positions] = moved
        return Replica(version, self.grid, integers, buffers)

    def delta_to(self, integers: Integers, layout: Layout) -> Sparse:
        """Return the delta with which `changed` leads from this replica to other weights.

        A difference beyond float32 is infinite in it, and `changed` refuses that.

        Args:
            integers: The other weights in units of the grid, shape (n,).
            layout: The layout of the vector.
        """
        positions = np.flatnonzero(integers != self.integers)
        steps = (integers[positions] - self.integers[positions]).astype(np.float64)
        with np.errstate(over="ignore"):
            values = np.ldexp(steps, self.grid.spacing(positions, layout)).astype(np.float32)
        return Sparse(positions, values, layout.size)

    def regridded(self, regrids: Iterable[Regrid], layout: Layout) -> "Replica":
        """Return the same version on the grid of a later one: its nearest points, change after change (`rescaled`).

        Args:
            regrids: Changes of the grid since this replica's, in their order.
            layout: The layout of the vector.
        """
        regrids = list(regrids)
        if not regrids:
            return self
        exponents, integers, parts = list(self.grid.exponents), self.integers.copy(), list(_parts(layout))
        for regrid in regrids:
            part = parts[regrid.tensor]
            integers[part] = rescaled(integers[part], exponents[regrid.tensor], regrid.exponent)
            exponents[regrid.tensor] = regrid.exponent
        return self._replace(grid=FixedPoint(tuple(exponents)), integers=integers)

    def remapped(self, change: MaskChange) -> "Replica":
        """Return the same model within another mask: surviving weights stay as they are, new ones are zero."""
        return self._replace(integers=change.apply(self.integers))

    def kept(self) -> "KeptReplica":
        """Return the same in three quarters of the memory, for a version that is seldom needed."""
        integers = np.empty((len(self.integers), _KEPT_BYTES), np.uint8)
        for block in _blocks(slice(0, len(integers))):
            whole = np.ascontiguousarray(self.integers[block], "<i4").view(np.uint8).reshape(-1, 4)
            integers[block] = whole[:, :_KEPT_BYTES]
        return KeptReplica(self.version, self.grid, integers, self.buffers)

    def tag(self, mask_version: int, frozen: bytes = b"") -> bytes:
        """Return 8 bytes of a hash over version, grid, weights, buffers and the mask's version: proof of equality.

        Args:
            mask_version: Version of the mask.
            frozen: Digest of the parameters that are not trained (`flatten.digest`); empty: there are none.
        """
        digest = sha256(f"{mask_version} {self.version} {self.grid.exponents}".encode())
        digest.update(np.ascontiguousarray(self.integers, "<i4").data)
        digest.update(self.buffers)
        digest.update(frozen)
        return digest.digest()[:TAG_BYTES]


class KeptReplica(NamedTuple):
    """A replica with 24 bits for each integer, which are below 2^23 in magnitude.

    Law: `replica.kept().whole()` equals the replica.

    Attributes:
        version, grid, buffers: As of the replica.
        integers: Their lowest three bytes, the lowest first, uint8 (n, 3).
    """

    version: int
    grid: FixedPoint
    integers: NDArray[np.uint8]
    buffers: bytes

    def whole(self) -> Replica:
        """Return the replica."""
        integers = np.empty(len(self.integers), np.int32)
        for block in _blocks(slice(0, len(integers))):
            part = np.zeros((len(self.integers[block]), 4), np.uint8)
            part[:, 4 - _KEPT_BYTES :] = self.integers[block]
            integers[block] = part.view("<i4")[:, 0] >> 8 * (4 - _KEPT_BYTES)  # with its sign
        return Replica(self.version, self.grid, integers, self.buffers)


def _parts(layout: Layout) -> Iterator[slice]:
    offsets = layout.offsets.tolist()
    return (slice(start, stop) for start, stop in zip(offsets[:-1], offsets[1:], strict=True))


def _entries(update: Update) -> Iterator[tuple[NDArray[np.int64], Vector]]:
    """Yield positions and values of an update, block after block."""
    values = update.values
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        if isinstance(update, Sparse):
            yield update.positions[start : start + BLOCK], part
        else:
            yield np.arange(start, start + len(part)), part


def _blocks(part: slice) -> Iterator[slice]:
    """Return the blocks of a part of the vector."""
    return (slice(start, min(start + BLOCK, part.stop)) for start in range(part.start, part.stop, BLOCK))


def _peak(values: NDArray[Any]) -> float:
    """Return the largest magnitude, 0 for none; a NonFiniteError if it is none of float32."""
    peak = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    if not np.isfinite(peak):
        raise NonFiniteError("the model holds NaN or infinity, which clients cannot be given; did training diverge?")
    return peak


def _exponent(peak: float) -> int:
    """Return the exponent of the spacing in which a magnitude takes 20 bits."""
    return int(np.clip(np.frexp(peak)[1] - _BITS, _FINEST, _COARSEST))


def _checked(exponents: Iterable[int]) -> tuple[int, ...]:
    """Return the exponents of a grid; a ReplicaError where float32 has no such spacing."""
    exponents = tuple(exponents)
    if any(not _FINEST <= exponent <= _COARSEST for exponent in exponents):
        raise ReplicaError(f"a grid has spacings of 2^{_FINEST} to 2^{_COARSEST}, this one {sorted(set(exponents))}")
    return exponents
