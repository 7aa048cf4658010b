"""`fedpress bench size`: memory, processor time and bytes of each stage of a round, as ratios, by size of the model.

Memory counts in multiples of the float32 model, time in multiples of one copy of its vector, so that figures of
different models and machines can be compared. Each stage runs in a process of its own. Before it is measured it runs
once with a tiny model, so that imports and caches do not count. Models are lists of tensors as transformers have them,
with random weights; local training is an app that adds noise, whose own trained arrays are not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from rich.filesize import decimal as size

from fedpress.client import mod
from fedpress.client.state import replica as replicas
from fedpress.client.state import stores
from fedpress.client.state.memory import Memory
from fedpress.compression import free_memory
from fedpress.compression.encoders import recipes
from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Answer
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.server.checkpoint import state as states
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.settings import ModelSettings
from fedpress.simulations.benchmarks import memory
from fedpress.simulations.engines import client_grid

CLIENTS = 4
"""Clients whose updates a round has."""
TINY = 20_000
"""Parameters of the model with which each stage runs first."""
_DENSITY = 0.01


class Measured(NamedTuple):
    """Figures of one stage.

    Attributes:
        stage: Name of the stage.
        parameters: Number of parameters of the model.
        before: Resident memory before the stage, above that of the imports, in bytes.
        peak: Peak of it during the stage.
        after: Resident memory after it.
        seconds: Processor time.
        copy: Processor time of a copy of the model's vector, in the same process.
        bytes: Bytes that the stage wrote or read; 0: none.
    """

    stage: str
    parameters: int
    before: int
    peak: int
    after: int
    seconds: float
    copy: float
    bytes: int

    @property
    def extra(self) -> int:
        """Bytes that the stage needs for itself: its peak above what was there before, or is there after it."""
        return max(0, self.peak - max(self.before, self.after))

    def models(self, amount: int) -> float:
        """Return bytes in multiples of the float32 model."""
        return amount / (4 * self.parameters)


class Party:
    """Server and client of one model, without a network between them.

    Args:
        parameters: Number of parameters of the model.
        folder: Folder for what is stored.
    """

    def __init__(self, parameters: int, folder: Path) -> None:
        self.layout = Layout(tuple(tensors(parameters)))
        self.folder = folder
        self.encoder = recipes.default(_DENSITY)
        self.context = Context(1, 1, {"state-folder": str(folder / "client")}, RecordDict(), {})
        self.mod = mod.compress(self.encoder, layout=self.layout, initial=lambda _: weights(self.layout))
        self.marks: dict[str, int] = {}
        client_grid.act_as_server()

    def federation(self) -> Federation:
        """Return a federation of the initial model."""
        settings = ModelSettings(downlink=Downlink(density=_DENSITY, agreed_initial=True), layout=self.layout)
        federation = Federation(model=settings)
        federation.adopt(records.from_numpy(weights(self.layout)))
        return federation

    def replies(self, federation: Federation, server_round: int) -> list[Message]:
        """Return the replies of a round's clients, as if they had trained."""
        replies = []
        for node in range(1, CLIENTS + 1):
            message = federation.orders.train(node, server_round, {}, federation.model)
            order = orders.read_order(message.content)
            update = noise(self.layout.size, 1000 * server_round + node)
            payload = self.encoder.encode(update, self.encoder.init(self.layout), SideInfo(self.layout), 0).payload
            tag = order.download.tag if order.download else b""
            answer = orders.write_answer(Answer(order.ticket, order.version, payload, tag=tag))
            content = RecordDict({orders.ANSWER: answer, "metrics": MetricRecord({"num-examples": 10})})
            reply = Message(content, reply_to=message)
            records.set_source(reply, node)
            replies.append(reply)
        return replies

    def order(self, federation: Federation, server_round: int) -> Message:
        """Return an order for the client of this run, which has the version that it confirmed last."""
        message = federation.orders.train(1, server_round, {}, federation.model)
        return records.message_from_bytes(records.message_to_bytes(message))

    def app(self, message: Message, _: Context) -> Message:
        """Train: add noise to every array; mark the memory before and after."""
        self.marks["training"] = memory.resident(os.getpid(), "VmHWM")
        record = message.content.array_records["arrays"]
        trained = {
            name: records.from_numpy({name: array.numpy() + noise(array_size(array.shape), seed).reshape(array.shape)})
            for seed, (name, array) in enumerate(record.items())
        }
        whole = records.from_numpy({})
        for name, part in trained.items():
            whole[name] = part[name]
        metrics = MetricRecord({"num-examples": 10})
        reply = Message(RecordDict({"arrays": whole, "metrics": metrics}), reply_to=message)
        del trained, whole
        _reset_peak()
        return reply


def tensors(parameters: int) -> Iterator[TensorSpec]:
    """Yield the tensors of a transformer of about this size, whose last one makes the number exact.

    >>> sum(spec.size for spec in tensors(1_000_000))
    1000000
    """
    width = max(64, 64 * round(768 * (parameters / 1.1e8) ** (1 / 3) / 64))
    left = parameters

    def take(name: str, *shape: int) -> Iterator[TensorSpec]:
        nonlocal left
        spec = TensorSpec(name, shape, "float32")
        if spec.size <= left:
            left -= spec.size
            yield spec

    yield from take("embedding.weight", max(1, parameters // 5 // width), width)
    for number in range(parameters // (12 * width * width) + 1):
        for name in ("query", "key", "value", "output"):
            yield from take(f"layers.{number}.{name}.weight", width, width)
            yield from take(f"layers.{number}.{name}.bias", width)
        yield from take(f"layers.{number}.up.weight", 4 * width, width)
        yield from take(f"layers.{number}.down.weight", width, 4 * width)
        yield from take(f"layers.{number}.norm.weight", width)
    if left:
        yield TensorSpec("rest", (left,), "float32")


def array_size(shape: tuple[int, ...]) -> int:
    """Return the number of entries of an array."""
    return int(np.prod(shape, dtype=np.int64))


def noise(count: int, seed: int) -> Vector:
    """Return normal noise of deviation 1e-3, float32 (count,)."""
    values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    values *= np.float32(1e-3)
    return values


def weights(layout: Layout) -> dict[str, NDArray[Any]]:
    """Return initial weights by name, normal with deviation 0.02, the same at each call."""
    return {
        spec.name: (noise(spec.size, seed) * np.float32(20)).reshape(spec.shape)
        for seed, spec in enumerate(layout.parameters)
    }


Work = Callable[[], int]
"""What is measured; returns the bytes that it wrote or read."""


def _server_at_rest(run: Party, keep: list[Any]) -> Work:
    def work() -> int:
        keep.append(run.federation())
        return 0

    return work


def _server_round(run: Party, keep: list[Any]) -> Work:
    federation = run.federation()
    federation.take(1, run.replies(federation, 1))
    replies = run.replies(federation, 2)
    keep.append(federation)

    def work() -> int:
        federation.take(2, replies)
        return sum(records.serialized_size(reply) for reply in replies)

    return work


def _server_snapshot(run: Party, keep: list[Any]) -> Work:
    federation = run.federation()
    federation.take(1, run.replies(federation, 1))

    def work() -> int:
        versions = federation.model.versions
        assert versions is not None
        delta = versions.delta(10**6, agreed=False)  # a version that this server knows nothing of
        assert delta is not None
        keep.append(delta)
        return delta.length

    return work


def _checkpoint_save(run: Party, keep: list[Any]) -> Work:
    federation = run.federation()
    federation.take(1, run.replies(federation, 1))
    keep.append(federation)

    def work() -> int:
        CheckpointFolder(run.folder / "server", budget=1).save(1, {"federation": federation.state()})
        return sum(path.stat().st_size for path in (run.folder / "server").iterdir())

    return work


def _round_journaled(run: Party, keep: list[Any]) -> Work:
    federation, folder = run.federation(), CheckpointFolder(run.folder / "server", budget=0)
    federation.journaled = True
    federation.take(1, run.replies(federation, 1))
    federation.recorded_step(1)
    folder.save(1, {"federation": federation.state()})
    federation.take(2, run.replies(federation, 2))
    keep.append(federation)

    def work() -> int:
        step = federation.recorded_step(2)
        assert step is not None
        folder.save(2, {"federation": federation.state()}, {"federation": federation.entry(), "step": step})
        return sum(path.stat().st_size for path in (run.folder / "server").glob("*.journal"))

    return work


def _checkpoint_load(run: Party, keep: list[Any]) -> Work:
    _checkpoint_save(run, [])()
    federation = run.federation()
    keep.append(federation)

    def work() -> int:
        checkpoint = CheckpointFolder(run.folder / "server").newest()
        assert checkpoint is not None
        states.restore(federation, checkpoint.saved, "federation")
        return sum(path.stat().st_size for path in (run.folder / "server").iterdir())

    return work


def _trained_once(run: Party) -> Federation:
    """Return a server whose client has trained in its first round, and stored its state."""
    federation = run.federation()
    reply = run.mod(run.order(federation, 1), run.context, run.app)
    reply = records.message_from_bytes(records.message_to_bytes(reply))
    records.set_source(reply, 1)
    federation.take(1, [reply])
    assert federation.taken_weight, federation.accounting.refusals
    return federation


def _client_training(run: Party, keep: list[Any]) -> Work:
    message = run.order(_trained_once(run), 2)

    def work() -> int:
        reply = run.mod(message, run.context, run.app)
        run.marks["all"] = memory.resident(os.getpid(), "VmHWM")
        return len(orders.read_answer(reply.content).payload)

    return work


def _client_snapshot(run: Party, keep: list[Any]) -> Work:
    federation = run.federation()
    federation.take(1, run.replies(federation, 1))
    versions = federation.model.versions
    assert versions is not None
    delta = versions.delta(10**6, agreed=False)
    assert delta is not None
    download = orders.Download(versions.tag, delta.base, delta.payload, versions.held.grid.pack())
    order = orders.Order("default", 1, 1, 0, versions.held.version, 0, download)
    del federation, versions

    def work() -> int:
        received = replicas.receive(order, download, None, RecordDict(), run.layout)
        assert received is not None
        keep.append(received)
        return len(download.delta)

    return work


def _encode(run: Party, keep: list[Any]) -> Work:
    update, state = noise(run.layout.size, 1), run.encoder.init(run.layout)
    state.residual[:] = noise(run.layout.size, 2)
    given = [(update, state)]  # handed over: the encoder may overwrite both
    del update, state

    def work() -> int:
        update, state = given.pop()
        encoded = run.encoder.encode(update, state, SideInfo(run.layout), 0)
        keep.append(encoded)
        return len(encoded.payload)

    return work


def _stored(run: Party) -> tuple[stores.FolderStore, Memory]:
    _trained_once(run)
    store = stores.open_store(run.context, "default")
    assert isinstance(store, stores.FolderStore)
    stored = store.load()
    assert stored is not None
    return store, Memory.of(stored)


def _state_save(run: Party, keep: list[Any]) -> Work:
    store, known = _stored(run)
    keep.append(known)

    def work() -> int:
        store.save(known.stored())
        return sum(path.stat().st_size for path in store.path.parent.iterdir())

    return work


def _state_load(run: Party, keep: list[Any]) -> Work:
    store, known = _stored(run)
    del known

    def work() -> int:
        stored = store.load()
        assert stored is not None
        keep.append(Memory.of(stored))
        return sum(path.stat().st_size for path in store.path.parent.iterdir())

    return work


STAGES: Mapping[str, Callable[[Party, list[Any]], Work]] = {
    "server at rest": _server_at_rest,
    "server, a round": _server_round,
    "snapshot made": _server_snapshot,
    "checkpoint saved": _checkpoint_save,
    "round journaled": _round_journaled,
    "checkpoint loaded": _checkpoint_load,
    "client, a round": _client_training,
    "snapshot received": _client_snapshot,
    "update encoded": _encode,
    "state saved": _state_save,
    "state loaded": _state_load,
}
"""Functions that prepare a stage and return what is measured, by name. What they append to the list stays."""


def run(
    numbers: Sequence[int], stages: Sequence[str] = tuple(STAGES), say: Callable[[str], None] = lambda line: None
) -> list[Measured]:
    """Measure each stage with models of each size.

    Args:
        numbers: Numbers of parameters.
        stages: Names of the stages.
        say: Called with each step's name.

    Raises:
        MemoryBenchError: There is no /proc.
    """
    memory.resident(os.getpid())
    figures = []
    for parameters in numbers:
        for stage in stages:
            say(f"{parameters:,} parameters: {stage}")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                figures.append(process.submit(_measured, stage, parameters).result())
    return figures


def _measured(stage: str, parameters: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="fedpress-size-") as folder:
        STAGES[stage](Party(TINY, Path(folder, "tiny")), [])()
        free_memory.give_back()
        imports = memory.resident(os.getpid())
        keep: list[Any] = []
        copy = _copy_seconds(parameters)
        measured = Party(parameters, Path(folder, "run"))
        work = STAGES[stage](measured, keep)
        free_memory.give_back()
        measured.marks.clear()
        before = memory.resident(os.getpid())
        _reset_peak()
        began = process_time()
        length = work()
        seconds = process_time() - began
        peak = memory.resident(os.getpid(), "VmHWM")
        if measured.marks:  # beside the app: its trained arrays are not the client's own part
            peak = max(measured.marks["training"], measured.marks["all"] - 4 * parameters)
        free_memory.give_back()
        after = memory.resident(os.getpid())
        return Measured(stage, parameters, before - imports, peak - imports, after - imports, seconds, copy, length)


def _reset_peak() -> None:
    """Let the peak of this process's resident memory begin anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise memory.MemoryBenchError(f"the peak of memory cannot be reset ({error}); Linux is needed") from None


def _copy_seconds(parameters: int) -> float:
    vector = np.ones(parameters, np.float32)
    target = np.empty_like(vector)
    times = []
    for _ in range(7):
        began = process_time()
        for _ in range(max(1, 10**7 // parameters)):
            np.copyto(target, vector)
        times.append((process_time() - began) / max(1, 10**7 // parameters))
    return float(np.median(times))


COLUMNS = ("parameters", "stage", "before", "at its peak", "after", "for itself", "processor", "of copies", "bytes")


def rows(figures: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return a row for each stage under `COLUMNS`; memory in multiples of the float32 model."""
    return [
        (
            f"{one.parameters:,}",
            one.stage,
            *(f"{one.models(amount):.2f}x" for amount in (one.before, one.peak, one.after, one.extra)),
            f"{one.seconds:.3f} s",
            f"{one.seconds / one.copy:,.0f}",
            size(one.bytes) if one.bytes else "",
        )
        for one in figures
    ]


def facts(figures: Sequence[Measured]) -> list[tuple[str, str]]:
    """Return the lines below the table."""
    return [
        ("memory", "resident, above that of the imports, in multiples of the float32 model"),
        ("for itself", "the peak above what was there before, or stays after it"),
        ("of copies", "processor time over that of one copy of the model's vector"),
        ("a round", f"{CLIENTS} clients, {_DENSITY:.0%} of the entries each; the app's trained arrays are not counted"),
    ]


def as_json(figures: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return the figures as plain data."""
    return [{**one._asdict(), "peak_models": one.models(one.peak), "copies": one.seconds / one.copy} for one in figures]
