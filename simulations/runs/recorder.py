"""Recorder of a run: writes its figures into the run folder after each round, and notifies the observers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from logging import WARNING, getLogger
from time import monotonic
from typing import NamedTuple

import safetensors.torch
from flwr.app import MetricRecord
from torch import nn

from fedpress.compression.ledger import ARRAYS, Ledger
from fedpress.compression.messages import records
from fedpress.compression.models.task import Evaluation
from fedpress.server import app as server
from fedpress.server.publishing.publish import Published
from fedpress.server.rounds.accounting import DenseSizes, RoundSummary, dense_sizes
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.server.strategies.tiered_fed import TieredFed, TrainingTier
from fedpress.simulations.results.records import (
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    Status,
    StudentResult,
    TierResult,
    TierRound,
    Totals,
)
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.observer import Observer

CLAIM_DIFFERS = 0.005
"""Difference between a client's claim about its student and the server's figure, as fractions, that the log names."""


class RecorderState(NamedTuple):
    """Figures so far, for checkpoints.

    Attributes:
        rounds: `RoundResult`s as JSON.
        students: `StudentResult`s as JSON.
        virtual_seconds: Of the rounds.
        seconds: Since the run began.
        phases: Seconds of the server by phase.
    """

    rounds: list[str]
    students: list[str]
    virtual_seconds: float
    seconds: float
    phases: dict[str, float]


@dataclass
class Recorder(server.RunRecord):
    """Recorder of one run.

    Attributes:
        job: Work of the scenario.
        folder: Of the run.
        strategy: Of the server, whose accounts and timer are read.
        observers: Follow the run.
        status: Of the run.
        reason: Why it failed; empty: it did not.
        waiting: What a deployment waits for; empty: it does not wait.
        rounds: Results so far.
        students: Results so far.
        digest: SHA-256 of the final model; empty before.
        began: Monotonic time at which the run began.
        virtual_seconds: Of the rounds so far.
        keep_state: Whether checkpoints and clients' states stay in the folder after the end.
        states: Returns the digest of the clients' states, which the final digest then covers too; empty: unknown.
        workers: Returns the seconds of the engine's workers by phase.
    """

    job: Job
    folder: RunFolder
    strategy: SparseFed
    observers: Sequence[Observer] = ()
    status: Status = "running"
    reason: str = ""
    waiting: str = ""
    rounds: list[RoundResult] = field(default_factory=list)
    students: list[StudentResult] = field(default_factory=list)
    digest: str = ""
    began: float = field(default_factory=monotonic)
    virtual_seconds: float = 0.0
    keep_state: bool = False
    states: Callable[[], str] = str
    workers: Callable[[], Mapping[str, float]] = dict

    def state(self) -> RecorderState:
        """Return the figures so far."""
        return RecorderState(
            [json.dumps(result.model_dump(mode="json")) for result in self.rounds],
            [json.dumps(result.model_dump(mode="json")) for result in self.students],
            self.virtual_seconds,
            monotonic() - self.began,
            self.strategy.timer.seconds,
        )

    def restore(self, state: RecorderState) -> None:
        """Take over the figures of the rounds before."""
        self.rounds = [RoundResult(**json.loads(entry)) for entry in state.rounds]
        self.students = [StudentResult(**json.loads(entry)) for entry in state.students]
        self.virtual_seconds = state.virtual_seconds
        self.began = monotonic() - state.seconds
        self.strategy.timer.seconds.update(state.phases)
        if self.rounds:
            for observer in self.observers:
                observer.on_resume(self.rounds)

    def on_round(self, summary: RoundSummary, evaluation: Evaluation | None) -> None:
        """Record a round.

        Args:
            summary: Of the round.
            evaluation: Of the model after it; None: not evaluated.
        """
        self.virtual_seconds += summary.seconds
        result = RoundResult(
            round=summary.round,
            accuracy=evaluation.accuracy if evaluation else None,
            loss=evaluation.loss if evaluation else None,
            up_bytes=summary.up_bytes,
            down_bytes=summary.down_bytes,
            replies=summary.replies,
            refused=len(summary.refusals),
            reasons=summary.reasons,
            virtual_seconds=self.virtual_seconds,
            joules=self._joules(summary.round),
            staleness=summary.staleness,
            max_staleness=summary.max_staleness,
            tiers={name: _tier_round(part) for name, part in summary.tiers.items()},
            mask_version=summary.mask_version,
            density=summary.density,
        )
        self.rounds.append(result)
        self.waiting = ""
        self.folder.save_results(self.results())
        for observer in self.observers:
            observer.on_round(result)

    def on_silence(self, server_round: int, attempts: int) -> None:
        """Record that no node has answered a round.

        Args:
            server_round: Number of the round.
            attempts: Number of times that it was asked without an answer.
        """
        self.waiting = f"no reply yet in round {server_round}, which was asked {attempts} time(s); it is asked again"
        getLogger("flwr").log(WARNING, "%s", self.waiting)
        self.folder.save_results(self.results())

    def on_students(self, deliveries: list[server.Delivery]) -> None:
        """Record the students that were published, each once, with what its clients say of it.

        A client that cannot take its student, or says something else of it than the server, is named in the log.
        """
        by_tier: dict[str, list[server.Delivery]] = {}
        for delivery in deliveries:
            by_tier.setdefault(delivery.student.tier, []).append(delivery)
        for tier, received in by_tier.items():
            student = received[0].student
            for each in received:
                if each.accuracy is None:
                    _warn("node %d could not take student %s: %s", each.node, tier, each.error)
                elif abs(each.accuracy - student.quantized_accuracy) > CLAIM_DIFFERS:
                    own = student.quantized_accuracy
                    _warn(
                        "node %d says that student %s has %.4f, here it has %.4f", each.node, tier, each.accuracy, own
                    )
            claims = [delivery.accuracy for delivery in received if delivery.accuracy is not None]
            if not claims:
                nobody = f"no client could take it: {received[-1].error}"
                student = student._replace(warning="; ".join(filter(None, (student.warning, nobody))))
            if student.warning:
                _warn("student %s: %s", tier, student.warning)
            result = student_result(student, student.quantized_accuracy, claims)
            self.students.append(result)
            for observer in self.observers:
                observer.on_student(result)
        self.write("running")

    def on_end(self, model: nn.Module, digest: str) -> None:
        """Save the final model and the figures so far.

        Args:
            model: The global model.
            digest: Its SHA-256.
        """
        self.digest = digest
        safetensors.torch.save_model(model, str(self.folder.model))
        for tier in self.tiers:
            self.folder.tiers.mkdir(exist_ok=True)
            tier.model.load_state_dict(tier.federation.model.published.to_torch_state_dict())
            safetensors.torch.save_model(tier.model, str(self.folder.tiers / f"{tier.name}.safetensors"))
        self.write("running")

    def on_finished(self) -> None:
        """Complete the digest, write the run as finished, and remove its state unless that is kept."""
        if states := self.states():
            self.digest = sha256(f"{self.digest} {states}".encode()).hexdigest()
        self.write("finished")
        if not self.keep_state:
            self.folder.clear_state()

    def on_failed(self, reason: str) -> None:
        """Write the run as failed; its state stays.

        Args:
            reason: Why it failed.
        """
        self.write("failed", reason)

    def write(self, status: Status, reason: str = "") -> None:
        """Write ledgers and figures into the folder.

        Args:
            status: Of the run.
            reason: Why it failed; empty: it did not.
        """
        self.status, self.reason = status, reason
        ledgers = [accounting.ledger for accounting in self.strategy.accounts.values()]
        (Ledger.merged(ledgers) if self.tiers else ledgers[0]).save(self.folder.ledger)
        for tier in self.tiers:
            self.folder.tiers.mkdir(exist_ok=True)
            tier.federation.accounting.ledger.save(self.folder.tiers / f"{tier.name}.csv")
        self.folder.save_results(self.results())

    def results(self) -> Results:
        """Return the figures so far."""
        accounts, workload = self.strategy.accounts, self.job.whole
        evaluated = [r.accuracy for r in self.rounds[-server.FINAL_ROUNDS :] if r.accuracy is not None]
        dense = {
            direction: sum(sizes[way] * accounts[name].messages[direction] for name, sizes in self._dense_sizes.items())
            for way, direction in enumerate(("up", "down"))
        }
        return Results(
            scenario=workload.scenario.model_dump(mode="json"),
            seed=workload.scenario.seed,
            status=self.status,
            reason=self.reason,
            waiting=self.waiting,
            rounds=self.rounds,
            totals=Totals(
                up_bytes=sum(each.ledger.total(direction="up") for each in accounts.values()),
                down_bytes=sum(each.ledger.total(direction="down") for each in accounts.values()),
                dense_up_bytes=dense["up"],
                dense_down_bytes=dense["down"],
                bundle_bytes=sum(each.ledger.total(kind="bundle") for each in accounts.values()),
                joules=self._joules(),
                array_bytes=sum(each.ledger.total(kind=kind) for each in accounts.values() for kind in ARRAYS),
                dense_array_bytes=sum(
                    dense.arrays * sum(accounts[name].messages.values()) for name, dense in self._dense_sizes.items()
                ),
            ),
            model=ModelInfo(parameters=workload.layout.size, sha256=self.digest),
            students=self.students,
            layers=[
                LayerDensity(name=name, size=size, sent=sent)
                for name, size, sent in self.strategy.federation.density_by_layer()
            ],
            faults=dict(sorted(workload.faults.struck.items())) if workload.faults else {},
            lost_states=sum(each.lost_states for each in accounts.values()),
            tiers=[self._tier_result(tier) for tier in self.tiers],
            accuracy=sum(evaluated) / len(evaluated) if evaluated else None,
            seconds=monotonic() - self.began,
            phases=dict(self.strategy.timer.seconds),
            worker_phases=dict(self.workers()),
        )

    def _joules(self, round: int | None = None) -> float:
        network = self.job.whole.network
        ledgers = [accounting.ledger for accounting in self.strategy.accounts.values()]
        return sum(network.joules_of(ledger, round) for ledger in ledgers) if network else 0.0

    @property
    def tiers(self) -> tuple[TrainingTier, ...]:
        """Tiers that train."""
        return self.strategy.training_tiers if isinstance(self.strategy, TieredFed) else ()

    def _tier_result(self, tier: TrainingTier) -> TierResult:
        last = [r.tiers[tier.name].accuracy for r in self.rounds[-server.FINAL_ROUNDS :] if tier.name in r.tiers]
        evaluated = [accuracy for accuracy in last if accuracy is not None]
        ledger = tier.federation.accounting.ledger
        return TierResult(
            tier=tier.name,
            parameters=self.job.tiers[tier.name].layout.size,
            accuracy=sum(evaluated) / len(evaluated) if evaluated else None,
            up_bytes=ledger.total(direction="up"),
            down_bytes=ledger.total(direction="down"),
        )

    @cached_property
    def _dense_sizes(self) -> dict[str, DenseSizes]:
        """Bytes of dense messages, as plain Flower sends them, by the name of the model's tier.

        They hold what is trained, and the buffers: a frozen base would not travel.
        """
        sizes = {}
        for name, work in self.job.models.items():
            names = [spec.name for spec in (*work.layout.parameters, *work.layout.buffers)]
            sizes[name] = dense_sizes(records.views(work.initial_arrays()), names)
        return sizes


def student_result(student: Published, accuracy: float, claims: Sequence[float] = ()) -> StudentResult:
    """Return the figures of a student.

    Args:
        student: As published.
        accuracy: Of its bundle, opened here; a fraction on test data.
        claims: Accuracies that clients report.
    """
    figures = {key: value for key, value in student._asdict().items() if key != "path"}
    lists = {key: list(figures[key]) for key in ("stages", "candidates", "curve", "timings")}
    return StudentResult(**figures | lists, accuracy=accuracy, claimed_accuracies=list(claims))


def _warn(text: str, *values: object) -> None:
    getLogger("flwr").log(WARNING, text, *values)


def _tier_round(summary: RoundSummary) -> TierRound:
    evaluation = summary.evaluation or MetricRecord()
    return TierRound(
        accuracy=evaluation.get("accuracy"),  # type: ignore[arg-type]
        loss=evaluation.get("loss"),  # type: ignore[arg-type]
        up_bytes=summary.up_bytes,
        down_bytes=summary.down_bytes,
        replies=summary.replies,
    )
