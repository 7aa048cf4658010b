"""Calibration: second moments of what each weight matrix of a model is multiplied by, from one forward pass.

Methods that round or remove weights so that a layer's outputs change little (GPTQ, AdaRound, SparseGPT, Wanda) need
E[x x^T] of its inputs x. `calibrate` runs the model once on a batch of calibration inputs. Just before a weight is
used, its moments are taken and `visit` may change it, and the pass goes on with the changed one: every layer is
calibrated on the outputs of the changed layers before it, in time linear in the number of layers, with the moments of
one layer in memory at a time.

Layers are found by operation, not by class: whatever multiplies a matrix that lies in a parameter (a product, one of
a batch, a convolution as a product with its unfolded inputs) is a use of it, in the orientation in which it is used.
So nn.Linear, the transposed `Conv1D` of GPT-2, the packed projection of nn.MultiheadAttention or a bare parameter are
alike. A parameter in which rows are looked up is an embedding, also where it is multiplied as well (tied to the output
layer), and is not visited. What is neither is `unreached`, and reported.

Padding: of inputs by name, a tensor (N, L) of zeros and ones whose name says that it is a mask tells which places
count (`inputs.places`). The others are left out where a product has N * L rows; whether these lie example by example or
place by place is tried, by running two examples and then one of them twice. Rows in any other number all count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedpress.compression.errors import NonFiniteError
from fedpress.compression.models import architecture, inputs
from fedpress.compression.models.inputs import Batch, Inputs
from fedpress.compression.models.reproducible import evaluating

MAX_EXAMPLES: Final = 512
MAX_BYTES: Final = 1 << 28
"""Largest activation of the batch, in bytes: fewer examples are used where one has large activations."""
_ROWS: Final = 8192
"""Rows of a product in float32 before they are added in float64."""

_aten = torch.ops.aten
_OPERANDS: Final = {
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.bmm.default: (0, 1),
    _aten.baddbmm.default: (1, 2),
}
"""Positions of the two factors among the arguments of products."""


class Site(NamedTuple):
    """Place in a parameter of matrices that inputs are multiplied by: y = x W^T.

    Attributes:
        name: Name of the parameter.
        size: (groups, outputs, inputs): a matrix for each group of a grouped convolution or of a batch of products.
        stride: Strides of the parameter's entries, so that matrices stored as (inputs, outputs) are covered.
        offset: First entry.
    """

    name: str
    size: tuple[int, int, int]
    stride: tuple[int, int, int]
    offset: int

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the view (groups, outputs, inputs) of a contiguous tensor of the parameter's shape."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)


Visit = Callable[[Site, Tensor, Tensor], None]
"""Called with a site, its weight (groups, outputs, inputs), which may be changed in place, and the mean second moments
of its inputs, float64 (groups, inputs, inputs)."""


class Reached(NamedTuple):
    """What calibration has met, by the names of float parameters of two or more dimensions, tied ones once.

    Attributes:
        multiplied: Parameters with matrices that inputs were multiplied by, which were visited.
        looked_up: Parameters whose rows were looked up.
        unreached: All others: no calibration input gets to them, or they are used in another way.
        examples: Calibration examples used.
    """

    multiplied: tuple[str, ...]
    looked_up: tuple[str, ...]
    unreached: tuple[str, ...]
    examples: int


def calibrate(model: nn.Module, calibration: Inputs, visit: Visit) -> Reached:
    """Run the model once, and visit each of its weight matrices before it is used for the first time.

    A weight that is used more than once in a pass (tied layers, a recurrence) is visited once, with the moments of all
    its uses in the model as it is given.

    >>> layer, seen = nn.Linear(2, 1, bias=False), {}
    >>> calibrate(layer, torch.tensor([[1.0, 2.0]]), lambda site, weight, moments: seen.update({site.name: moments}))
    Reached(multiplied=('weight',), looked_up=(), unreached=(), examples=1)
    >>> seen["weight"].tolist()
    [[[1.0, 2.0], [2.0, 4.0]]]

    Args:
        model: Model in float32 on the CPU, whose weights `visit` may change; run in evaluation mode.
        calibration: Inputs of N examples, of which the first are used, as many as `MAX_EXAMPLES` and `MAX_BYTES` let.
        visit: See `Visit`.

    Raises:
        ValueError: There are no calibration inputs.
        NonFiniteError: The inputs of a weight hold NaN or infinity.
    """
    if not inputs.count(calibration):
        raise ValueError("calibration needs inputs, got none: does the task hold out a proxy part?")
    batch = inputs.first(calibration, MAX_EXAMPLES)
    with _calibrating(model):
        parameters = _recognizable(model)
        probe = _probe(model, parameters, batch)
        fitting = max(1, MAX_BYTES // max(1, probe.largest_bytes))
        batch = inputs.first(batch, fitting)
        padding = _Padding.of(batch, probe.by_place)
        tied = probe.looked_up
        shared = {site: _Sum() for site, times in probe.times.items() if times > 1 and site.name not in tied}

        def collect(site: Site, _: Tensor, rows: Callable[[], Iterator[Tensor]]) -> None:
            if site in shared:
                shared[site].add(rows())

        if shared:  # before any of them is changed
            collector = _Pass(parameters, padding, probe.last)
            collector.on_use = collect
            collector.run(model, batch)
        visited: dict[Site, None] = {}

        def use(site: Site, weight: Tensor, rows: Callable[[], Iterator[Tensor]]) -> None:
            if site in visited or site.name in tied:
                return
            visited[site] = None
            total = shared.pop(site, _Sum())
            moments = (total if total.rows else total.add(rows())).mean()
            if not moments.isfinite().all():
                raise NonFiniteError(
                    f"the inputs of {site.name!r} hold NaN or infinity on the calibration data: did the training"
                    " diverge, or does a padded row divide by zero?"
                )
            visit(site, weight, moments)

        final = _Pass(parameters, padding, probe.last)
        final.on_use = use
        final.run(model, batch)
    multiplied = {site.name for site in visited}
    looked_up = tied | final.looked_up
    every = architecture.tensors(model).items()
    names = [name for name, tensor in every if tensor.ndim > 1 and tensor.is_floating_point()]
    return Reached(
        tuple(name for name in names if name in multiplied),
        tuple(name for name in names if name in looked_up),
        tuple(name for name in names if name not in multiplied | looked_up),
        inputs.count(batch),
    )


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode, with attention and LSTMs in their parts instead of as one operation each."""
    fast = torch.backends.mha.get_fastpath_enabled()
    lstm = any(isinstance(part, nn.LSTM) for part in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    before = torch.backends.mkldnn.set_flags(False)[0] if lstm else None  # type: ignore[no-untyped-call]
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if lstm:
            torch.backends.mkldnn.set_flags(before)  # type: ignore[no-untyped-call]


def _recognizable(model: nn.Module) -> dict[str, Tensor]:
    """Return the float tensors by name, tied ones once, that have contiguous memory of their own to know them by."""
    return {
        name: tensor
        for name, tensor in architecture.tensors(model).items()
        if tensor.is_floating_point()
        and tensor.numel()
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == _bytes(tensor)
    }


class _Sum:
    """Sum of second moments over rows (groups, rows, inputs)."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, pieces: Iterator[Tensor]) -> _Sum:
        for piece in pieces:
            for part in torch.split(piece.float(), _ROWS, dim=1):
                product = (part.transpose(1, 2) @ part).double()
                self.total = product if self.total is None else self.total.add_(product)
                self.rows += part.shape[1]
        return self

    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total / max(1, self.rows)


class _Padding(NamedTuple):
    """Places that count.

    Attributes:
        masks: By number of rows N * L, which rows count: bool (N * L,), example by example.
        sizes: By number of rows, (N, L).
        by_place: Sites whose rows lie place by place.
    """

    masks: Mapping[int, Tensor]
    sizes: Mapping[int, tuple[int, int]]
    by_place: frozenset[Site]

    @classmethod
    def of(cls, batch: Batch, by_place: frozenset[Site] = frozenset()) -> _Padding:
        """Return what the masks of a batch say; two masks of one size say nothing."""
        found: dict[int, list[Tensor]] = {}
        for name, tensor in batch.items() if isinstance(batch, Mapping) else ():
            counting = inputs.places(name, tensor)
            if counting is not None and bool(counting.any()):
                found.setdefault(tensor.numel(), []).append(counting)
        single = {rows: masks[0] for rows, masks in found.items() if len(masks) == 1}
        sizes = {rows: (mask.shape[0], mask.shape[1]) for rows, mask in single.items()}
        return cls({rows: mask.flatten() for rows, mask in single.items()}, sizes, by_place)

    def kept(self, site: Site, rows: Tensor) -> Tensor:
        """Return those of the rows (groups, rows, inputs) that count."""
        mask = self.masks.get(rows.shape[1]) if len(rows) == 1 else None
        if mask is None:
            return rows
        if site in self.by_place:
            mask = mask.reshape(self.sizes[len(mask)]).T.flatten()
        return rows[:, mask.to(rows.device)]


class _Finished(Exception):  # noqa: N818  not an error: the rest of the pass is of no interest
    """The last use of a weight was visited."""


class _Pass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One forward pass, in which uses of parameters are recognized.

    Args:
        parameters: Parameters by name.
        padding: Rows that count.
        last: Site after whose last use the pass ends, and how often it is used; None: it goes on to its end.
    """

    def __init__(self, parameters: Mapping[str, Tensor], padding: _Padding, last: tuple[Site, int] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {tensor.untyped_storage().data_ptr(): name for name, tensor in parameters.items()}
        self._padding, self._last = padding, last
        self.on_use: Callable[[Site, Tensor, Callable[[], Iterator[Tensor]]], None] = lambda *_: None
        self.on_output: Callable[[Tensor], None] = lambda _: None
        self.times: dict[Site, int] = {}
        self.looked_up: set[str] = set()

    def run(self, model: nn.Module, batch: Batch) -> None:
        try:
            with self:
                inputs.call(model, batch)
        except _Finished:
            pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.embedding.default and (name := self._name(args[0])):
            self.looked_up.add(name)
        site, weight, rows = self._use(func, args)
        if site is not None:
            self.times[site] = self.times.get(site, 0) + 1
            self.on_use(site, weight, rows)
            if self._last == (site, self.times[site]):
                raise _Finished
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not self._name(result):
            self.on_output(result)
        return result

    def _name(self, tensor: Any) -> str | None:
        return self._names.get(tensor.untyped_storage().data_ptr()) if isinstance(tensor, Tensor) else None

    def _use(self, func: Any, args: Any) -> tuple[Site | None, Any, Any]:
        """Return site, weight (groups, outputs, inputs) and the rows that it multiplies; Nones for other operations."""
        if func is _aten.convolution.default and not args[6] and (name := self._name(args[1])):
            given, weight, groups = args[0], args[1], args[8]
            matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
            if matrix.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
                return _site(name, matrix), matrix, lambda: _unfolded(given, weight, args[3], args[4], args[5], groups)
        if func is _aten._grouped_mm.default and (name := self._name(args[1])):  # experts
            matrix = args[1].transpose(1, 2)
            return _site(name, matrix), matrix, lambda: iter([_stacked(args[0], args[2])])
        if func is _aten.linear.default and (name := self._name(args[1])):
            given, matrix = args[0].reshape(1, -1, args[0].shape[-1]), args[1][None]
        elif func in _OPERANDS:
            left, right = (args[position] for position in _OPERANDS[func])
            if left.ndim == 2:
                left, right = left[None], right[None]
            if name := self._name(right):
                given, matrix = left, right.transpose(1, 2)
            elif name := self._name(left):
                given, matrix = right.transpose(1, 2), left
            else:
                return None, None, None
            if len(matrix) > 1 and matrix.stride(0) == 0:  # one matrix for the whole batch
                given, matrix = given.reshape(1, -1, given.shape[-1]), matrix[:1]
        else:
            return None, None, None
        site = _site(name, matrix)
        return site, matrix, lambda: iter([self._padding.kept(site, given)])


def _site(name: str, matrix: Tensor) -> Site:
    """Return the site of a view (groups, outputs, inputs) of a parameter."""
    groups, outputs, columns = matrix.shape
    stride = (matrix.stride(0) if groups > 1 else 0, matrix.stride(1), matrix.stride(2))
    return Site(name, (groups, outputs, columns), stride, int(matrix.storage_offset()))


def _unfolded(
    given: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Iterator[Tensor]:
    """Yield the rows that a convolution multiplies its kernels by, (groups, rows, inputs), some examples at a time.

    Args:
        given: Inputs (N, channels, ...).
        weight: Kernels (outputs, channels / groups, ...).
        stride: Stride by axis.
        padding: Padding by axis.
        dilation: Dilation by axis.
        groups: Groups of channels.
    """
    edges = [side for size in reversed(padding) for side in (size, size)]
    axes = len(edges) // 2
    for example in given:
        windows = nn.functional.pad(example[None], edges)[0]
        for axis in range(axes):
            reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
            windows = windows.unfold(1 + axis, reach, stride[axis])[..., :: dilation[axis]]
        # (channels, places ..., kernel ...) -> (groups, places, channels of the group * kernel)
        windows = windows.reshape(groups, -1, *windows.shape[1:])
        order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
        yield windows.permute(order).reshape(groups, -1, weight[0].numel())


def _stacked(rows: Tensor, ends: Tensor) -> Tensor:
    """Return rows (N, inputs) of several groups, one after another, as (groups, most rows, inputs), filled with zeros.

    Args:
        rows: Rows of all groups.
        ends: End of each group, (groups,).
    """
    return nn.utils.rnn.pad_sequence([*torch.tensor_split(rows, ends[:-1].long().cpu())], batch_first=True)


class _Probed(NamedTuple):
    """What a pass of two examples tells of the passes to come.

    Attributes:
        times: How often each site is used.
        last: The last use.
        looked_up: Parameters whose rows are looked up.
        largest_bytes: Largest activation before the last use, in bytes an example.
        by_place: Sites whose rows lie place by place.
    """

    times: dict[Site, int]
    last: tuple[Site, int] | None
    looked_up: set[str]
    largest_bytes: int
    by_place: frozenset[Site]


def _probe(model: nn.Module, parameters: Mapping[str, Tensor], batch: Batch) -> _Probed:
    """Run the model on two examples and return what it does; on one of them twice, where there is a mask."""
    pair = inputs.first(batch, 2)
    first = _Pass(parameters, _Padding({}, {}, frozenset()), None)
    order: list[Site] = []
    sums: list[list[Tensor]] = [[], []]
    largest = [0, 0]  # so far, and before the last use

    def seen(site: Site, _: Tensor, rows: Callable[[], Iterator[Tensor]]) -> None:
        if site.name in first.looked_up:
            return
        order.append(site)
        largest[1] = largest[0]
        if masked.masks:
            sums[0].append(_row_sums(rows()))

    def output(result: Tensor) -> None:
        largest[0] = max(largest[0], _bytes(result) // inputs.count(pair))

    masked = _Padding.of(pair)
    first.on_use, first.on_output = seen, output
    first.run(model, pair)
    by_place: set[Site] = set()
    if masked.masks and inputs.count(pair) == 2:
        second = _Pass(parameters, _Padding({}, {}, frozenset()), None)

        def seen_again(site: Site, _: Tensor, rows: Callable[[], Iterator[Tensor]]) -> None:
            if site.name not in first.looked_up:
                sums[1].append(_row_sums(rows()))

        second.on_use = seen_again
        second.run(model, inputs.take(pair, torch.tensor([0, 0])))
        for site, one, other in zip(order, *sums, strict=False):
            changed = torch.nonzero(one != other).flatten() if one.shape == other.shape else torch.empty(0)
            # All of the second example's: the odd ones place by place, the second half example by example.
            if len(changed) and bool((changed % 2 == 1).all()) and int(changed[0]) < len(one) // 2:
                by_place.add(site)
    last = (order[-1], first.times[order[-1]]) if order else None
    return _Probed(first.times, last, first.looked_up, largest[1], frozenset(by_place))


def _row_sums(pieces: Iterator[Tensor]) -> Tensor:
    return torch.cat([piece[0].double().sum(1) for piece in pieces])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
