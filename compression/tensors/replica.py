"""The model that clients of a version hold, the same bits on every device.

A held model is an integer times a power of two for every parameter, one power for each tensor, and every integer is
below 2^23 in magnitude, so that float32 holds it exactly, and the difference of any two. A delta is a change of the
integers. Merging deltas and undoing them is integer addition: one merged delta and a chain of single ones give the same
bits, which sums of floats do not.

Version 0 is the model that the user gives. A client that can make the same one by itself (the same weights file, the
same initialization under the same seed) needs no first copy of it; the tag proves that it is the same, since torch's
initialization differs between processors and releases.
"""

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.tensors.update import Sparse, Update

Integers: TypeAlias = NDArray[np.int32]

LIMIT = 2**23 - 1
_BITS = 20  # that a tensor's largest magnitude takes at first: it can grow to 8 times that
_SPACING = struct.Struct("<h")
TAG_BYTES = 8


class ReplicaError(FedpressError, ValueError):
    """A replica and the bytes or the delta that should change it do not fit each other."""


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
        """
        peaks = [float(np.abs(vector[part]).max(initial=0)) or 0.5 for part in _parts(layout)]
        return cls(tuple(max(-120, int(np.frexp(peak)[1]) - _BITS) for peak in peaks))

    def integers(self, vector: Vector, layout: Layout) -> Integers:
        """Return the nearest points of the grid as integers, shape (n,), clipped to its range.

        Args:
            vector: Weights, float32, shape (n,).
            layout: The layout of the vector.
        """
        integers = np.empty(layout.size, np.int32)
        for part, exponent in zip(_parts(layout), self.exponents, strict=True):
            scaled = np.rint(np.ldexp(vector[part].astype(np.float64), -exponent))
            integers[part] = np.clip(scaled, -LIMIT, LIMIT)
        return integers

    def floats(self, integers: Integers, layout: Layout) -> Vector:
        """Return the weights that integers stand for, float32, shape (n,), without rounding.

        Args:
            integers: Points of the grid, shape (n,).
            layout: The layout of the vector.
        """
        weights = np.empty(layout.size, np.float32)
        for part, exponent in zip(_parts(layout), self.exponents, strict=True):
            np.multiply(integers[part], np.float32(2.0**exponent), out=weights[part], casting="unsafe")
        return weights

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
            ReplicaError: The grid is not one of as many tensors.
        """
        if len(data) != _SPACING.size * len(layout.parameters):
            raise ReplicaError(f"a grid of {len(data)} bytes does not fit {len(layout.parameters)} tensors")
        return cls(tuple(exponent for (exponent,) in _SPACING.iter_unpack(data)))


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

    def changed(self, delta: Update, version: int, buffers: bytes, layout: Layout) -> "Replica":
        """Return the replica of another version: the weights plus a delta.

        Args:
            delta: Changes of the weights, whole multiples of the grid's spacing.
            version: The new version.
            buffers: Buffers of the new version.
            layout: The layout of the vector.

        Raises:
            ReplicaError: A change is no multiple of the spacing, or the result leaves the grid.
        """
        entries = delta.sparse()
        steps = np.ldexp(entries.values.astype(np.float64), -self.grid.spacing(entries.positions, layout))
        integers = self.integers.copy()
        moved = integers[entries.positions] + steps
        if (steps != np.rint(steps)).any() or (np.abs(moved) > LIMIT).any():
            raise ReplicaError(f"a delta to version {version} leaves the grid; it was made for another model")
        integers[entries.positions] = moved
        return Replica(version, self.grid, integers, buffers)

    def delta_to(self, integers: Integers, layout: Layout) -> Sparse:
        """Return the delta with which `changed` leads from this replica to other weights.

        Args:
            integers: The other weights in units of the grid, shape (n,).
            layout: The layout of the vector.
        """
        positions = np.flatnonzero(integers != self.integers)
        steps = (integers[positions] - self.integers[positions]).astype(np.float64)
        return Sparse(positions, np.ldexp(steps, self.grid.spacing(positions, layout)).astype(np.float32), layout.size)

    def remapped(self, change: MaskChange) -> "Replica":
        """Return the same model within another mask: surviving weights stay as they are, new ones are zero."""
        return self._replace(integers=change.apply(self.integers))

    def tag(self, mask_version: int, frozen: bytes = b"") -> bytes:
        """Return 8 bytes of a hash over version, grid, weights, buffers and the mask's version: proof of equality.

        Args:
            mask_version: Version of the mask.
            frozen: Digest of the parameters that are not trained (`flatten.digest`); empty: there are none.
        """
        digest = sha256(f"{mask_version} {self.version} {self.grid.exponents}".encode())
        digest.update(np.ascontiguousarray(self.integers, "<i4").tobytes())
        digest.update(self.buffers)
        digest.update(frozen)
        return digest.digest()[:TAG_BYTES]


def _parts(layout: Layout) -> Iterator[slice]:
    offsets = layout.offsets.tolist()
    return (slice(start, stop) for start, stop in zip(offsets[:-1], offsets[1:], strict=True))
