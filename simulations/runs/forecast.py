"""Forecast of a run: what is trained, sent, held by clients and stored, measured on the messages of a first exchange.

The orders and the reply are made as in the rounds, from the initial model and an update drawn at random. Later messages
have other lengths: positions and values are entropy-coded, and clients that were away get more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from rich.filesize import decimal as size

from fedpress.client.state import stores
from fedpress.compression import seeds
from fedpress.compression.messages import orders, pieces, records
from fedpress.compression.messages.orders import Answer
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout, Vector, names_a_buffer
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.server.checkpoint import checkpoint_folder
from fedpress.server.checkpoint.state import Packed
from fedpress.server.rounds.accounting import dense_sizes
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.orders import SPARE_BYTES
from fedpress.simulations.engines import client_grid
from fedpress.simulations.results.records import Record
from fedpress.simulations.results.run_folder import RunFolderError
from fedpress.simulations.runs.checks import Checked
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.scenario.students import Students, Tier

WORKER_BYTES = 250_000_000
"""Memory of a worker process besides data and model: Python, torch and Flower."""
COPIES = 8
"""Vectors of the model's size that a worker holds at its peak: weights, gradients, update, residual and the like."""


class ModelForecast(Record):
    """Forecast of one model; bytes are of whole messages, and of one client or one round as they say."""

    tier: str  # empty: the global model
    trained: int  # parameters, as the next
    frozen: int
    buffers: int  # entries
    first_down_bytes: int  # the first order that a client gets
    down_bytes: int  # a later one, by a client that was asked in the round before
    up_bytes: int
    dense_down_bytes: int  # of FedAvg, without compression
    dense_up_bytes: int
    request_bytes: int  # the largest request of a client: a record of its reply, long entries of which go in pieces
    clients: int  # that train it in a round
    moments_bytes: int  # of the optimizer, in the memory of a worker that trains it
    held_bytes: int  # by a client between rounds: model, residual, last reply, and the moments if they are kept


class StudentForecast(Record):
    """Forecast of one student."""

    tier: str
    budget: str
    form: str


class Forecast(Record):
    """Forecast of a run."""

    scenario: str
    rounds: int
    clients: int
    models: list[ModelForecast]
    students: list[StudentForecast]
    round_up_bytes: int
    round_down_bytes: int
    run_up_bytes: int
    run_down_bytes: int
    checkpoint_bytes: int  # of the server, all that are kept
    states_bytes: int  # of all clients that take part
    disk_bytes: int  # in the run folder at most, without students
    memory_bytes: int  # of all worker processes
    notes: list[str]


def of(job: Job, checked: Checked, *, keep_payloads: bool = False) -> Forecast:
    """Return the forecast of a run.

    Args:
        job: Work of the scenario.
        checked: Result of its checks, whose plan is used up.
        keep_payloads: Whether the run keeps every accepted payload.
    """
    scenario, strategy = job.whole.scenario, checked.plan.strategy
    client_grid.act_as_server()
    shares = dict(zip([group.name if group else "" for group in scenario.groups], _shares(scenario), strict=True))
    models = [
        _model(name, work, strategy.federations[name], shares.get(name, 0))
        for name, work in job.models.items()
    ]  # fmt: skip
    up = sum(model.clients * model.up_bytes for model in models)
    down = sum(model.clients * model.down_bytes for model in models)
    taking_part = min(scenario.clients, scenario.rounds * scenario.clients_at_work)
    first = sum(
        max(0, model.first_down_bytes - model.down_bytes) * min(taking_part, scenario.rounds * model.clients)
        for model in models
    )
    checkpoint = Packed({name: federation.state() for name, federation in strategy.federations.items()}).size
    client_states = sum(model.held_bytes for model in models) // len(models) * taking_part
    kept = checkpoint * min(checkpoint_folder.KEEP, scenario.rounds)
    if checkpoint > checkpoint_folder.SMALL and scenario.checkpoint_budget < 1:
        kept += min(kept, scenario.rounds * up)  # a journal is at most as large as its checkpoint
    payloads = scenario.rounds * up if keep_payloads else 0
    weights = sum(4 * (model.trained + model.frozen) + 8 * model.buffers for model in models)
    ledger = 60 * 2 * scenario.rounds * scenario.clients_at_work
    moments = max(model.moments_bytes for model in models)
    splits = job.whole.task.data()
    data = sum(model_inputs.memory_bytes(part.inputs) + part.targets.nbytes for part in splits)
    return Forecast(
        scenario=scenario.name,
        rounds=scenario.rounds,
        clients=scenario.clients,
        models=models,
        students=[_student(tier, scenario.students) for tier in scenario.students.tiers],
        round_up_bytes=up,
        round_down_bytes=down,
        run_up_bytes=scenario.rounds * up,
        run_down_bytes=scenario.rounds * down + first,
        checkpoint_bytes=kept,
        states_bytes=client_states,
        # A checkpoint is written beside the old one.
        disk_bytes=kept + checkpoint + client_states + payloads + weights + ledger,
        memory_bytes=scenario.worker_count * (WORKER_BYTES + 2 * data + COPIES * weights + moments),
        notes=list(checked.notes),
    )


def _shares(scenario: Scenario) -> list[int]:
    return scenario.shares(scenario.sampling.clients_per_round)


def _model(name: str, work: Workload, federation: Federation, clients: int) -> ModelForecast:
    """Make the messages of a first exchange, and measure them."""
    named = work.initial_arrays()
    arrays = records.views(named)
    federation.adopt(arrays)
    model, writer = federation.model, federation.orders
    first = records.content_size(writer.train(1, 1, ConfigRecord(), model).content)
    layout = model.layout
    generator = np.random.default_rng(seeds.derive("forecast", work.scenario.seed))
    payload, residual = _encoded(work, _noise(layout.size, generator), layout)
    buffers = buffer_codec.pack(named, layout, None) if layout.buffers else b""
    changing = [names_a_buffer(spec.name) for spec in layout.buffers]  # statistics and counters; others are constants
    answer = Answer(
        1, 0, payload=payload, buffers=buffer_codec.pack_changes(buffers, changing, layout), tag=b"12345678", tier=name
    )
    metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0})
    reply = RecordDict({orders.ANSWER: orders.write_answer(answer), "metrics": metrics})
    up = records.content_size(records.folded(reply))
    moved = {
        name: np.asarray(array + array.dtype.type(1)) if names_a_buffer(name) else array
        for name, array in model.buffers.items()
    }
    model.step(_noise(layout.size, generator), moved)
    writer.tickets.versions[1] = model.version - 1
    writer.tickets.bases[1] = bool(layout.frozen)
    down = records.content_size(writer.train(1, 2, ConfigRecord(), model).content)
    dense_up, dense_down, _ = dense_sizes(arrays, [spec.name for spec in (*layout.parameters, *layout.buffers)])
    replica = 4 * layout.size + len(buffers) if model.versions else 0
    kept_moments = 4 * work.training.moments * layout.full.size * (work.training.optimizer_state == "keep")
    parameters = work.parameters()
    return ModelForecast(
        tier=name,
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        buffers=sum(spec.size for spec in layout.buffers),
        first_down_bytes=first,
        down_bytes=down,
        up_bytes=up,
        dense_down_bytes=dense_down,
        dense_up_bytes=dense_up,
        request_bytes=_largest_request(layout),
        clients=clients,
        moments_bytes=4 * work.training.moments * layout.full.size,
        held_bytes=replica + residual + up + kept_moments,
    )


def _largest_request(layout: Layout) -> int:
    """Return the bytes of the largest record of a reply: Flower sends each in a request of its own.

    It holds an update, buffers and a vote; each is cut into pieces where it is long. An update that is no smaller than
    a dense one has a quarter more.
    """
    entries = (5 * layout.full.size, 8 * sum(spec.size for spec in layout.buffers), layout.full.size // 8 + 1)
    return sum(min(pieces.LIMIT, length) for length in entries) + SPARE_BYTES


def _noise(count: int, generator: np.random.Generator) -> Vector:
    """Return an update of no client, float32 (count,): normal, of deviation 1e-3."""
    update = generator.standard_normal(count, np.float32)
    update *= np.float32(1e-3)
    return update


def _encoded(work: Workload, update: Vector, layout: Layout) -> tuple[bytes, int]:
    """Return the payload of an update, and the bytes of what a client keeps back of it."""
    encoder = work.encoder
    payload, _, state = encoder.encode(update, encoder.init(layout), SideInfo(layout), 1)
    return payload, sum(array.nbytes for array in stores.flatten_state(state).values())


def _student(tier: Tier, students: Students) -> StudentForecast:
    value = getattr(tier, tier.kind)
    budget = f"{value:.3g} of the parameters" if tier.kind == "parameters" and isinstance(value, float) else None
    if tier.kind == "removed_fraction":
        budget = "as few weights as it can" if value == "auto" else f"{value:.3g} of the weights removed"
    which = {"pruned": "the global model, pruned", "auto": "the best that a search finds"}.get(
        tier.student, tier.student
    )
    file = "an ONNX file" if students.quantize.onnx else f"a bundle of {students.quantize.bits} bits a weight"
    trained = ", trained by its clients" if tier.trains else ""
    return StudentForecast(
        tier=tier.name,
        budget=budget or f"{value:,} {tier.kind.replace('_', ' ')}",
        form=f"{which}{trained}, as {file}",
    )


def check_machine(forecast: Forecast, place: Path) -> list[str]:
    """Check that this machine has room for a run.

    Args:
        forecast: Forecast of the run.
        place: Path of the run folder, or of its parent; neither needs to exist.

    Returns:
        Notes.

    Raises:
        RunFolderError: The folder cannot be written, or the disk has less room than the run needs.
    """
    there = next(path for path in (place, *place.resolve().parents) if path.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFolderError(f"cannot make the run folder {place}: {there} cannot be written")
    free = shutil.disk_usage(there).free
    if free < forecast.disk_bytes:
        raise RunFolderError(
            f"{there} has {size(free)} free, and the run needs about {size(forecast.disk_bytes)}:"
            f" {size(forecast.checkpoint_bytes)} for checkpoints, {size(forecast.states_bytes)} for clients' states;"
            " make room, or give another folder"
        )
    notes = []
    if free < 2 * forecast.disk_bytes:
        notes.append(f"{there} has {size(free)} free, of which the run may need {size(forecast.disk_bytes)}")
    memory = _available_memory()
    if memory and memory < forecast.memory_bytes:
        notes.append(
            f"the worker processes may need {size(forecast.memory_bytes)} of memory, and {size(memory)} are available;"
            " fewer workers need less"
        )
    return notes


def _available_memory() -> int:
    """Return the memory in bytes that processes can still have; 0: not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)


MODEL_COLUMNS = ("model", "trained", "frozen", "buffers", "clients a round", "a client holds")
BYTES_COLUMNS = ("messages", "first order", "order", "reply", "dense order", "dense reply")
STUDENT_COLUMNS = ("student", "budget", "form")


def model_rows(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    """Yield the models as rows under `MODEL_COLUMNS`."""
    for model in forecast.models:
        yield (
            model.tier or "global", f"{model.trained:,}", f"{model.frozen:,}", f"{model.buffers:,}",
            str(model.clients), size(model.held_bytes),
        )  # fmt: skip


def bytes_rows(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    """Yield the messages of one client as rows under `BYTES_COLUMNS`."""
    for model in forecast.models:
        lengths = (
            model.first_down_bytes, model.down_bytes, model.up_bytes, model.dense_down_bytes, model.dense_up_bytes
        )  # fmt: skip
        yield (model.tier or "global", *map(size, lengths))


def student_rows(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    """Yield the students as rows under `STUDENT_COLUMNS`."""
    for student in forecast.students:
        yield student.tier, student.budget, student.form


def facts(forecast: Forecast) -> list[tuple[str, str]]:
    """Return name and value of the figures of the whole run, all of them estimates."""
    return [
        ("rounds", f"{forecast.rounds} on {forecast.clients} clients"),
        ("a round", f"about {size(forecast.round_up_bytes)} up, {size(forecast.round_down_bytes)} down"),
        ("the run", f"about {size(forecast.run_up_bytes)} up, {size(forecast.run_down_bytes)} down"),
        (
            "the run folder",
            f"at most about {size(forecast.disk_bytes)}, of which {size(forecast.checkpoint_bytes)} are checkpoints and"
            f" {size(forecast.states_bytes)} clients' states, until the run has finished",
        ),
        (
            "largest request",
            f"at most about {size(max(model.request_bytes for model in forecast.models))}, of a client that replies"
            " (`message_mib` of a server)",
        ),
        ("memory", f"about {size(forecast.memory_bytes)} for all worker processes"),
    ]
