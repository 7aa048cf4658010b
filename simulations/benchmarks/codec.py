"""`fedpress bench codec`: time and bytes of the codec, as ratios to references in the same run.

A ratio to `np.copyto` of the same vector compares the codec with the speed of memory, and carries over to other
machines better than seconds. All times are medians.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from fedpress.compression.encoders import recipes
from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors import layout
from fedpress.compression.tensors.layout import Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads as wire_payloads
from fedpress.compression.wire import values
from fedpress.simulations.benchmarks import codec_data, outside
from fedpress.simulations.scenario import scenario as scenarios

SIZE = 1_000_000
REPETITIONS = 7
PAYLOADS = 8
ENTROPY_BLOCK = 1 << 16


class BenchError(FedpressError, ValueError):
    """The data, the density or the format cannot be used."""


class CodecFigures(NamedTuple):
    """Costs of the codec; None where a figure has no meaning or was not measured.

    Attributes:
        size: n, entries of the vector.
        density: k/n as given.
        data: Name of the data, or the path of a file.
        values: The value format.
        sent: Entries sent; fewer than k if fewer are nonzero.
        encode_over_copy: Client step (add residual, select, encode, keep residual): seconds over those of `np.copyto`.
        encode_ms: The same in milliseconds.
        encode_memory_over_vector: Peak memory of the step beside update and residual, over the vector's.
        naive_over_encode: The same step with `torch.topk`, int32 and float32 on one thread, over the client step.
        flower_over_encode: Flower's serialization of the dense vector (ArrayRecord to protobuf), over the client step.
        nncodec_over_encode: nncodec's quantization and coding of the same entries, over the client step.
        nncodec_bits_per_nonzero: Bits of nncodec for each entry sent.
        nncodec_relative_error: Relative error of nncodec.
        openfl_over_encode: OpenFL's STC, selection and coding, over the client step.
        openfl_bits_per_nonzero: Bits of OpenFL for each entry sent.
        openfl_relative_error: Relative error of OpenFL.
        payload_bytes: Length of the payload.
        bits_per_nonzero: 8 payload_bytes / sent.
        relative_error: norm(decoded - kept) / norm(kept), over the entries sent.
        index_bits_over_entropy: Bits of the positions over their entropy: n H(k/n) for uniform data, else the sum of
            that over blocks of 64Ki.
        decode_accumulate_mnnz_per_s: Millions of entries a second from bytes to float64 sum, over several payloads.
        accumulate_over_dense_add: Seconds of that for one payload over those of a dense float64 += float32.
    """

    size: int
    density: float
    data: str
    values: str
    sent: int
    encode_over_copy: float
    encode_ms: float
    encode_memory_over_vector: float
    naive_over_encode: float | None
    flower_over_encode: float | None
    nncodec_over_encode: float | None
    nncodec_bits_per_nonzero: float | None
    nncodec_relative_error: float | None
    openfl_over_encode: float | None
    openfl_bits_per_nonzero: float | None
    openfl_relative_error: float | None
    payload_bytes: int
    bits_per_nonzero: float | None
    relative_error: float | None
    index_bits_over_entropy: float | None
    decode_accumulate_mnnz_per_s: float | None
    accumulate_over_dense_add: float


def run(
    size: int | None,
    density: float,
    data: str = "clustered",
    format: str = "step",
    payloads: int = PAYLOADS,
    repetitions: int = REPETITIONS,
    nncodec_python: Path | None = None,
    openfl_python: Path | None = None,
) -> CodecFigures:
    """Measure one vector.

    Args:
        size: n, by default 1,000,000; of a file or a real update the first n entries, by default all.
        density: k/n, 0 < density <= 1.
        data: A name of `codec_data.KINDS`; or a .npy file with a vector; or a scenario, for the update that its first
            client makes in the first round.
        format: Name of a value format; the encoder is `recipes.default`.
        payloads: Number of different payloads to decode and add.
        repetitions: Number of timings of each measurement; the median is reported.
        nncodec_python: Interpreter of an environment with nncodec, to measure it, too.
        openfl_python: Interpreter of an environment with OpenFL, likewise.

    Raises:
        BenchError: The data, the density or the format cannot be used.
        OutsideError: nncodec or OpenFL cannot be run.
    """
    if (size is not None and size < 1) or repetitions < 1 or payloads < 1:
        raise BenchError(f"size, payloads, repetitions: {size}, {payloads}, {repetitions}; expected at least 1 each")
    try:
        codec = recipes.default(density, values.by_name(format))
    except ValueError as error:
        raise BenchError(str(error)) from None
    update = _load(data, size)
    n = len(update)
    shared = SideInfo(layout.Layout((layout.TensorSpec("update", (n,), "float32"),)))

    # The same arrays each time: page faults are not the codec's work.
    donated, target = update.copy(), np.empty_like(update)
    payload, _, first = codec.encode(donated, codec.init(shared.layout), shared, 0)
    residual, donated = first.residual, update.copy()

    def restore() -> None:
        np.copyto(donated, update)

    def encode() -> None:
        codec.encode(donated, first._replace(residual=residual), shared, 0)

    copied = _seconds(lambda: np.copyto(target, update), repetitions)
    encoded = _seconds(encode, repetitions, restore)
    naive = _naive(donated, residual, density, repetitions, restore)
    flower = _flower(update, repetitions)

    restore()
    tracemalloc.start()
    encode()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    decoded = wire_payloads.decode(payload, shared).sparse()
    kept = update[decoded.positions].astype(np.float64)
    norm = float(np.linalg.norm(kept))
    relative_error = float(np.linalg.norm(decoded.values - kept)) / norm if norm else None
    nncodec = None
    if nncodec_python is not None and relative_error is not None:
        sparse = np.zeros_like(update)
        sparse[decoded.positions] = update[decoded.positions]
        nncodec = outside.measure(outside.NNCODEC, nncodec_python, sparse, relative_error, repetitions)
    openfl = None
    if openfl_python is not None:
        openfl = outside.measure(outside.OPENFL, openfl_python, update, density, repetitions)
    entropy = _entropy(decoded, n if data == "uniform" else ENTROPY_BLOCK)

    # Rotations of the update: they cost the same to decode, and touch different memory.
    received = [payload]
    for turn in range(1, payloads):
        turned = np.roll(update, turn * n // payloads)
        received.append(codec.encode(turned, codec.init(shared.layout), shared, 0)[0])
    total = np.zeros(n)

    def accumulate() -> None:
        for each in received:
            wire_payloads.decode(each, shared).add_to(total)

    accumulated = _seconds(accumulate, repetitions)
    added = _seconds(lambda: np.add(total, update, out=total), repetitions)
    return CodecFigures(
        size=n,
        density=density,
        data=data,
        values=format,
        sent=decoded.count,
        encode_over_copy=encoded / copied,
        encode_ms=1e3 * encoded,
        encode_memory_over_vector=memory / update.nbytes,
        naive_over_encode=None if naive is None else naive / encoded,
        flower_over_encode=None if flower is None else flower / encoded,
        nncodec_over_encode=nncodec.seconds / encoded if nncodec else None,
        nncodec_bits_per_nonzero=8 * nncodec.bytes / decoded.count if nncodec else None,
        nncodec_relative_error=nncodec.relative_error if nncodec else None,
        openfl_over_encode=openfl.seconds / encoded if openfl else None,
        openfl_bits_per_nonzero=8 * openfl.bytes / decoded.count if openfl and decoded.count else None,
        openfl_relative_error=openfl.relative_error if openfl else None,
        payload_bytes=len(payload),
        bits_per_nonzero=8 * len(payload) / decoded.count if decoded.count else None,
        relative_error=relative_error,
        index_bits_over_entropy=8 * wire_payloads.inspect(payload)["position_bytes"] / entropy if entropy else None,
        decode_accumulate_mnnz_per_s=decoded.count * payloads / accumulated / 1e6 if decoded.count else None,
        accumulate_over_dense_add=accumulated / payloads / added,
    )


def facts(figures: CodecFigures) -> list[tuple[str, str]]:
    """Return name and value of the figures, as text."""

    def ratio(value: float | None, unit: str = "x") -> str:
        return "not measured" if value is None else f"{value:,.2f}{unit}"

    def beside(name: str, seconds: float | None, bits: float | None, error: float | None) -> str:
        if seconds is None:
            return f"not measured: it needs an environment of its own, see --{name}-python"
        return f"{ratio(seconds)} the client step, {ratio(bits, ' bits an entry')}, relative error {ratio(error, '')}"

    nncodec = beside(
        "nncodec", figures.nncodec_over_encode, figures.nncodec_bits_per_nonzero, figures.nncodec_relative_error
    )
    openfl = beside(
        "openfl", figures.openfl_over_encode, figures.openfl_bits_per_nonzero, figures.openfl_relative_error
    )
    return [
        ("data", f"{figures.data}, {figures.size:,} entries, {figures.sent:,} sent as {figures.values}"),
        ("client step", f"{figures.encode_ms:,.2f} ms, {ratio(figures.encode_over_copy)} a copy of the vector"),
        ("memory of it", f"{figures.encode_memory_over_vector:.2f}x the vector, beside update and residual"),
        ("naive top-k", f"{ratio(figures.naive_over_encode)} the client step"),
        ("Flower, dense", f"{ratio(figures.flower_over_encode)} the client step"),
        ("nncodec", nncodec),
        ("OpenFL's STC", openfl),
        ("payload", f"{figures.payload_bytes:,} bytes, {ratio(figures.bits_per_nonzero, ' bits an entry')}"),
        ("relative error", ratio(figures.relative_error, " of the entries sent")),
        ("positions", f"{ratio(figures.index_bits_over_entropy)} their entropy"),
        ("decode and add", ratio(figures.decode_accumulate_mnnz_per_s, " million entries a second")),
        ("a payload added", f"{ratio(figures.accumulate_over_dense_add)} a dense vector added"),
    ]


def _load(data: str, size: int | None) -> Vector:
    if data in codec_data.KINDS:
        return codec_data.KINDS[data](SIZE if size is None else size, 0)
    path = Path(data)
    try:
        if path.suffix == ".npy":
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            loaded = codec_data.trained(scenarios.load(data))
    except (OSError, ValueError) as error:
        raise BenchError(
            f"data is {data!r}: {error}; expected one of {', '.join(codec_data.KINDS)}, a .npy file, or a scenario"
        ) from None
    if loaded.dtype != np.float32 or loaded.ndim != 1 or (size is not None and len(loaded) < size):
        raise BenchError(
            f"{data} holds {loaded.dtype} of shape {loaded.shape}, expected float32 of one dimension and at least"
            f" {size or 1} entries; flatten the update, or give a smaller --size"
        )
    vector: Vector = np.array(loaded[:size])
    return vector


def _seconds(work: Callable[[], object], repetitions: int, prepare: Callable[[], None] | None = None) -> float:
    """Return the median time of `work`, after a warm-up; `prepare` is not timed."""
    times = []
    for _ in range(repetitions + 1):
        if prepare is not None:
            prepare()
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return median(times[1:])


def _naive(
    donated: Vector, residual: Vector, density: float, repetitions: int, restore: Callable[[], None]
) -> float | None:
    """Return the seconds of the straightforward client step, or None without torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    k = max(1, round(density * len(donated)))
    update, before = torch.from_numpy(donated), torch.from_numpy(residual)

    def work() -> bytes:
        corrected = update.add_(before)
        places = torch.topk(corrected.abs(), k).indices
        chosen = corrected[places]
        corrected[places] = 0
        return places.to(torch.int32).numpy().tobytes() + chosen.numpy().tobytes()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _seconds(work, repetitions, restore)
    finally:
        torch.set_num_threads(threads)


def _flower(update: Vector, repetitions: int) -> float | None:
    """Return the seconds of Flower's serialization, or None without Flower."""
    try:
        from flwr.app import ArrayRecord, RecordDict

        from fedpress.compression.messages import records
    except ModuleNotFoundError:
        return None

    def work() -> bytes:
        record = RecordDict({"arrays": ArrayRecord([update])})
        return records.content_to_bytes(record)

    return _seconds(work, repetitions)


def _entropy(update: Sparse, block: int) -> float:
    """Return the entropy of the positions in bits: the sum over blocks, each with its own density."""
    starts = np.arange(0, update.size, block)
    sizes = np.diff(starts, append=update.size)
    densities = np.bincount(update.positions // block, minlength=len(sizes)) / sizes
    inside = (densities > 0) & (densities < 1)
    p, counts = densities[inside], sizes[inside]
    return float(-(counts * (p * np.log2(p) + (1 - p) * np.log2(1 - p))).sum())
