"""Layouts: which tensors one flat float32 vector holds, in which order.

A model travels as one vector: its parameters in the order of its `Layout`, each flattened row by row and cast to
float32 (`flatten`). Buffers (running means and variances, counters) are not parameters: they stay out of the vector,
out of selection, residuals and server rates, and travel apart in their own dtypes (`buffer_codec`).

Parameters that are not trained (`requires_grad=False`, such as a backbone's) are frozen, and so are the buffers of
modules that have no others: they are part of the model that clients hold, and never of an update.

The vector of a sparse model holds only the entries of its mask, in the same order: `Layout.within`. Names and shapes of
the tensors stay, the entries outside are left out by `flatten`, and are zeros again after `unflatten`.
"""

import dataclasses
import functools
import hashlib
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors.mask import Mask, MaskChange, Positions

Vector: TypeAlias = NDArray[np.float32]
"""A flat update or model, shape (n,), C-contiguous."""

BLOCK = 1 << 16
"""Elements of a vector that are processed at a time: with all arrays derived from them they fit the L2 cache."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes of tensors that may enter the vector."""

INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Dtypes of tensors that are always buffers."""

VARIANCE_NAMES = ("running_var", "moving_variance", "moving_var", "_variance", "batch_stats/var", "var_ema/average")
"""The usual ends of the names of running variances: PyTorch, Keras, MXNet, Paddle, Flax, Haiku."""

BUFFER_NAMES = (
    *VARIANCE_NAMES, "running_mean", "moving_mean", "_mean", "batch_stats/mean", "mean_ema/average",
    "num_batches_tracked",
)  # fmt: skip
"""The usual ends of the names of buffers, by which `Layout.of_arrays` tells them from parameters."""

_MASK_MARK = b"\xff\xff\xff\xff"
"""Separator before the mask's bitmap in the fingerprint's input, where a tensor would have the length of its name."""


class TensorSpec(NamedTuple):
    """One tensor of a layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy's and torch's common name: "float32", "bfloat16", "int64", ...

    @property
    def size(self) -> int:
        """Number of elements; 1 for a 0-d tensor, 0 for an empty one."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Which tensors a vector holds, in which order; and which buffers travel beside it.

    Attributes:
        parameters: The tensors of the vector, in its order.
        buffers: The tensors that travel apart, in the order of `buffer_codec`.
        tied: Pairs (alias, canonical name) of tensors that are one in memory; an alias takes no room in the vector.
        mask: Which entries of the parameters the vector holds, counted over all of them; None: all.
        frozen: Parameters that are not trained, and buffers of frozen modules: the same bytes at every client from the
            first round to the last.
        norm_momenta: Pairs (name of a layer with running statistics, its momentum: the share of one batch in them;
            None: they are the mean over all batches). Arrays do not tell: `of` knows it, `of_arrays` does not.

    >>> layout = Layout((TensorSpec("weight", (2, 3), "float32"), TensorSpec("bias", (2,), "float32")))
    >>> layout.size, layout.offsets.tolist(), f"{layout.fingerprint:08x}"
    (8, [0, 6, 8], '15ccf025')
    >>> sparse = layout.within(Mask.at(np.array([0, 5, 7]), 8))
    >>> sparse.size, sparse.offsets.tolist(), f"{sparse.fingerprint:08x}"
    (3, [0, 2, 3], '0eb41c25')
    """

    parameters: tuple[TensorSpec, ...]
    buffers: tuple[TensorSpec, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    mask: Mask | None = None
    frozen: tuple[TensorSpec, ...] = ()
    norm_momenta: tuple[tuple[str, float | None], ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [spec.name for spec in (*self.parameters, *self.buffers, *self.frozen)] + [
            alias for alias, _ in self.tied
        ]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise errors.LayoutError(f"these names stand more than once in the layout: {', '.join(twice)}")
        for spec in self.parameters:
            if spec.dtype not in FLOATS:
                remedy = (
                    "a complex constant is best left out of what is sent; what is trained is sent as two real numbers"
                    " (torch.view_as_real)"
                    if spec.dtype.startswith("complex")
                    else "integers belong among the buffers"
                )
                raise errors.LayoutError(
                    f"parameter {spec.name!r} has dtype {spec.dtype}; a vector takes {', '.join(FLOATS)} only. {remedy}"
                )
        for spec in self.buffers:
            if spec.dtype not in (*FLOATS, *INTEGERS):
                raise errors.LayoutError(
                    f"buffer {spec.name!r} has dtype {spec.dtype}, expected one of {', '.join((*FLOATS, *INTEGERS))}"
                )
        canonical_names = {spec.name for spec in self.parameters}
        for alias, canonical in self.tied:
            if canonical not in canonical_names:
                raise errors.LayoutError(f"{alias!r} is tied to {canonical!r}, which is no parameter of the layout")
        if self.mask is not None and self.mask.size != (size := sum(spec.size for spec in self.parameters)):
            raise errors.LayoutError(
                f"the mask has {self.mask.size} entries, the layout has {size}; is it another model's mask?"
            )

    @functools.cached_property
    def full(self) -> "Layout":
        """The same tensors without a mask."""
        return self if self.mask is None else dataclasses.replace(self, mask=None)

    def within(self, mask: Mask | None) -> "Layout":
        """Return the layout of the same tensors whose vector holds the entries of `mask` only; None: all.

        Raises:
            LayoutError: The mask has another number of entries.
        """
        return dataclasses.replace(self, mask=mask)

    def change_to(self, after: "Layout") -> MaskChange:
        """Return the change from vectors of this layout to those of `after`, which differs in its mask only.

        Raises:
            LayoutError: The two layouts have different tensors.
        """
        if self.full.fingerprint != after.full.fingerprint:
            raise errors.LayoutError("the two layouts differ in more than their masks; is one of another model?")
        return MaskChange.between(self.mask, after.mask, self.full.size)

    def whole(self, positions: Positions) -> Positions:
        """Return the positions of entries of this vector in the vector without a mask: int64, shape (k,)."""
        return positions if self.mask is None else self.mask.positions[positions]

    def present(self, positions: NDArray[np.integer[Any]]) -> tuple[NDArray[np.bool_], Positions]:
        """Translate positions in the vector without a mask into positions in this vector.

        Args:
            positions: Positions in the vector without a mask, shape (k,).

        Returns:
            Whether the mask has each of them, bool (k,), and the positions in this vector of those that it has, int64.
        """
        if self.mask is None:
            return np.ones(len(positions), np.bool_), positions.astype(np.int64)
        inside = self.mask.flags[positions]
        return inside, np.searchsorted(self.mask.positions, positions[inside])

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each tensor in the vector, and the end of the last: int64, shape (tensors + 1,)."""
        offsets = np.cumsum([0, *(spec.size for spec in self.parameters)], dtype=np.int64)
        return offsets if self.mask is None else np.searchsorted(self.mask.positions, offsets)

    @functools.cached_property
    def size(self) -> int:
        """n, the length of the vector."""
        return int(self.offsets[-1])

    @functools.cached_property
    def fingerprint(self) -> int:
        """32 bits of the parameters' names, shapes and dtypes and of the mask, as docs/reference/wire.md has them."""
        digest = hashlib.sha256()
        for spec in self.parameters:
            for text in (spec.name, spec.dtype):
                encoded = text.encode()
                digest.update(struct.pack("<I", len(encoded)) + encoded)
            digest.update(struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *spec.shape))
        if self.mask is not None:
            digest.update(_MASK_MARK + self.mask.bitmap)
        return int.from_bytes(digest.digest()[:4], "little")

    @classmethod
    def of(cls, model: Any) -> "Layout":
        """Return the layout of a torch module (known by its methods; torch itself is not needed here).

        Tied parameters count once, under their first name. A buffer that is not part of `state_dict()` stays out.
        Integer and boolean parameters count as buffers, since they cannot be averaged. Parameters with
        `requires_grad=False` are frozen, and with them the buffers of a module that has no others (`frozen_modules`):
        the running statistics of a frozen normalization are part of the base, and not measured again.

        Args:
            model: An object with `named_parameters`, `named_buffers`, `named_modules` and `state_dict`, as
                `torch.nn.Module` has them.
        """
        still = frozen_modules(model)
        in_state = set(model.state_dict().keys())
        parameters: list[TensorSpec] = []
        buffers: list[TensorSpec] = []
        tied: list[tuple[str, str]] = []
        frozen: list[TensorSpec] = []
        first: dict[int, str] = {}  # id of the tensor -> its first name; the model keeps the tensors alive
        for name, tensor in model.named_parameters(remove_duplicate=False):
            spec = TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            if spec.dtype in INTEGERS:
                buffers.append(spec)
            elif not tensor.requires_grad:
                frozen.append(spec)
            elif id(tensor) in first:
                tied.append((name, first[id(tensor)]))
            else:
                first[id(tensor)] = name
                parameters.append(spec)
        for name, tensor in model.named_buffers(remove_duplicate=False):
            if name in in_state:
                spec = TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                (frozen if name.rpartition(".")[0] in still else buffers).append(spec)
        momenta = tuple(
            (name, module.momentum)
            for name, module in model.named_modules()
            if hasattr(module, "running_mean") and hasattr(module, "momentum") and name not in still
        )
        return cls(tuple(parameters), tuple(buffers), tuple(tied), None, tuple(frozen), momenta)

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        *,
        buffers: Collection[str] = (),
        tied: Collection[tuple[str, str]] = (),
        frozen: Collection[str] = (),
    ) -> "Layout":
        """Return the layout of named arrays, where the model itself is not available.

        The rule: an array is a buffer if its dtype is integer or boolean, or if its name ends as those of running means
        and variances do in PyTorch, Keras, Paddle, MXNet, Flax and Haiku (`BUFFER_NAMES`). Anything else is a
        parameter. Frozen ones cannot be seen. What names do not tell can be said: `layout_doubts` finds what is worth a
        look.

        Args:
            arrays: The arrays by name.
            buffers: Names of other arrays that are buffers.
            tied: Pairs (alias, canonical name) of arrays that are one tensor in the model.
            frozen: Names of arrays that training leaves as they are, such as all of a base beside its adapters.

        Raises:
            LayoutError: A name is not among the arrays, or an array has a dtype that cannot be sent.

        >>> arrays = {"0.weight": np.zeros((2, 2), np.float32), "1.running_mean": np.zeros(2, np.float32)}
        >>> [spec.name for spec in Layout.of_arrays(arrays).buffers]
        ['1.running_mean']
        >>> unnamed = {"0": np.zeros((2, 2), np.float32), "1": np.zeros(2, np.float32), "2": np.ones(2, np.float32)}
        >>> [spec.name for spec in Layout.of_arrays(unnamed, buffers=["1", "2"]).buffers]
        ['1', '2']
        """
        aliases = {alias for alias, _ in tied}
        given = (*buffers, *frozen, *(name for pair in tied for name in pair))
        unknown = [name for name in given if name not in arrays]
        if unknown:
            raise errors.LayoutError(f"no array has the name {unknown[0]!r}; there are {', '.join(list(arrays)[:20])}")
        parameters: list[TensorSpec] = []
        apart: list[TensorSpec] = []
        still: list[TensorSpec] = []
        for name, array in arrays.items():
            spec = TensorSpec(name, tuple(array.shape), array.dtype.name)
            if name in frozen:
                still.append(spec)
            elif spec.dtype in INTEGERS or name in buffers or names_a_buffer(name):
                apart.append(spec)
            elif name not in aliases:
                parameters.append(spec)
        return cls(tuple(parameters), tuple(apart), tuple(tied), None, tuple(still))


def frozen_modules(model: Any) -> frozenset[str]:
    """Return the names of a torch module's modules that are frozen: none of their own parameters is trained.

    A module without any of its own is as the smallest module around it that has some, at whatever depth. Where all
    parameters are trained, or there are none, no module is frozen.

    Args:
        model: An object with `named_parameters`, as `torch.nn.Module` has it.
    """
    owners: dict[str, bool] = {}  # module with parameters of its own -> whether one of them is trained
    around: dict[str, bool] = {}  # the same of all parameters inside
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if str(tensor.dtype).removeprefix("torch.") in INTEGERS:
            continue
        trained, module = bool(tensor.requires_grad), name.rpartition(".")[0]
        owners[module] = owners.get(module, False) or trained
        while True:
            around[module] = around.get(module, False) or trained
            if not module:
                break
            module = module.rpartition(".")[0]
    frozen = []
    for name, _ in model.named_modules():
        nearest = name
        while nearest and nearest not in around:
            nearest = nearest.rpartition(".")[0]
        trained = owners[name] if name in owners else around.get(nearest, True)
        if not trained:
            frozen.append(name)
    return frozenset(frozen)


def names_a_buffer(name: str) -> bool:
    """Tell whether a name is that of a running mean or variance, or of its counter, in the usual frameworks.

    >>> [names_a_buffer(name) for name in ("bn.running_mean", "bn/moving_variance:0", "batch_stats.BatchNorm_0.var")]
    [True, True, True]
    >>> [names_a_buffer(name) for name in ("fc_mean.weight", "log_var", "weight")]
    [False, False, False]
    """
    return _ends(name, BUFFER_NAMES)


def names_a_variance(name: str) -> bool:
    """Tell whether a name is that of a running variance, which cannot be negative, in the usual frameworks."""
    return _ends(name, VARIANCE_NAMES)


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    """Tell whether the last part of a name is one of `ends`; "a/b": the last part is b, below a part that is a."""
    parts = name.removesuffix(":0").replace("/", ".").split(".")
    for end in ends:
        above, _, last = end.rpartition("/")
        if parts[-1] == last and (not above or above in parts[:-1]):
            return True
    return False


def check(vector: NDArray[Any], layout: Layout) -> None:
    """Check the dtype, shape and contiguity of a vector.

    Args:
        vector: The array to check.
        layout: Layout that the vector should have.

    Raises:
        LayoutError: It is not a C-contiguous float32 array of shape (n,), n = layout.size.
    """
    if vector.dtype != np.float32 or vector.shape != (layout.size,) or not vector.flags.c_contiguous:
        raise errors.LayoutError(
            f"expected a contiguous float32 vector of shape ({layout.size},), got {vector.dtype} of shape "
            f"{vector.shape}; was it made by `flatten` with the same layout?"
        )


def is_finite(vector: NDArray[Any]) -> bool:
    """Return whether a vector holds neither NaN nor infinity, block by block."""
    return all(np.isfinite(vector[start : start + BLOCK]).all() for start in range(0, len(vector), BLOCK))


def check_finite(update: Vector) -> None:
    """Raise NonFiniteError if an update holds NaN or infinity."""
    if not is_finite(update):
        raise errors.NonFiniteError("the update holds NaN or infinity; did training diverge?")


def read_only(vector: Vector) -> Vector:
    """Return a read-only view, for a wrapper that still needs the vector that it passes on."""
    view = vector.view()
    view.flags.writeable = False
    return view


def writable(vector: Vector) -> Vector:
    """Return the vector, or a copy of it if it is read-only, for a wrapper that modifies its input."""
    return vector if vector.flags.writeable else vector.copy()


def checked(arrays: Mapping[str, NDArray[Any]], spec: TensorSpec) -> NDArray[Any]:
    """Return the array of a tensor.

    Args:
        arrays: Named arrays of a model.
        spec: The tensor, parameter or buffer.

    Raises:
        LayoutError: The array is missing, or its shape or dtype differs.
    """
    if spec.name not in arrays:
        raise errors.LayoutError(f"array {spec.name!r} of shape {spec.shape} is missing; is it another model's layout?")
    array = np.asarray(arrays[spec.name])
    allowed = ("bfloat16", "uint16") if spec.dtype == "bfloat16" else (spec.dtype,)
    if array.shape != spec.shape or array.dtype.name not in allowed:
        raise errors.LayoutError(
            f"array {spec.name!r} is {array.dtype.name} of shape {array.shape}, "
            f"the layout has {spec.dtype} of shape {spec.shape}{rank_hint(spec.name, array.shape, spec.shape)}"
        )
    return array


def rank_hint(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return a hint where two shapes are those of one low-rank adapter (LoRA) of different ranks; else nothing.

    >>> rank_hint("query.lora_A.default.weight", (4, 384), (8, 384))
    ': an adapter of rank 4, expected rank 8'
    >>> rank_hint("query.weight", (4, 384), (8, 384))
    ''

    Args:
        name: Name of the tensor.
        given: Shape that was found.
        expected: Shape that it should have.
    """
    differing = [(a, b) for a, b in zip(given, expected, strict=False) if a != b]
    if "lora_" not in name or len(given) != len(expected) or len(differing) != 1:
        return ""
    return ": an adapter of rank {}, expected rank {}".format(*differing[0])
