"""A whole run of a scenario: the server's plan, the run folder kept up to date, the engine started and stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from logging import WARNING, getLogger
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

import safetensors.torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import serde
from torch import nn

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import write_atomically
from fedpress.compression.ledger import Ledger
from fedpress.compression.models.search import Step
from fedpress.compression.models.task import Evaluation
from fedpress.server import app as server
from fedpress.server import optimize
from fedpress.server.books import RoundSummary
from fedpress.server.checkpoint import State
from fedpress.server.ensemble import ClientModels
from fedpress.server.schedule import Buffered
from fedpress.server.strategy import SparseFed
from fedpress.server.tiers import TieredFed, TrainingTier
from fedpress.simulations import engine, sparsity, students, tier_strategy, worker_process
from fedpress.simulations import scenario as scenarios
from fedpress.simulations.run_folder import (
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    RunFolder,
    RunFolderError,
    StudentResult,
    TierResult,
    TierRound,
    Totals,
)
from fedpress.simulations.scenario import Scenario
from fedpress.simulations.workload import REFERENCE, Workload

HOPELESS_ROUNDS = 3
"""A run whose first rounds saw not one good reply is stopped: the scenario or the task is at fault, not a client."""


class RunError(FedpressError):
    """A run cannot go on."""


class Observer(Protocol):
    """Follows a run: a progress bar, a test."""

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """The run begins; nothing has been loaded yet."""

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """The run goes on after these rounds; comes after `on_start`, and not at all when there were none."""

    def on_round(self, result: RoundResult) -> None:
        """A round is over."""

    def on_search(self, tier: str, step: Step) -> None:
        """The search for a tier's student goes on."""

    def on_student(self, result: StudentResult) -> None:
        """A student was made, downloaded and evaluated."""

    def on_end(self, results: Results) -> None:
        """The run is over, finished or interrupted; the folder holds these results."""


def new_folder(scenario: Scenario, out: Path | str | None) -> RunFolder:
    """Make the run folder and write the scenario into it. Raises RunFolderError when `out` is not empty."""
    folder = RunFolder.create(out, name=scenario.name)
    folder.write_scenario(scenario.to_yaml())
    _begin(folder, scenario)
    return folder


def _begin(folder: RunFolder, scenario: Scenario) -> None:
    folder.state.mkdir(exist_ok=True)
    write_atomically(folder.begun, scenario.to_json().encode())


def unfinished(path: Path | str) -> tuple[RunFolder, Scenario]:
    """Return the folder and the scenario of a run that was killed or interrupted.

    Raises:
        RunFolderError: it is no such folder, its run is finished, or its scenario has been changed since.
        ScenarioError: its scenario.yaml is no longer valid.
    """
    folder = RunFolder.unfinished(path)
    scenario = scenarios.load(folder.scenario)
    if not folder.begun.is_file():  # killed before anything else
        _begin(folder, scenario)
    begun = json.loads(folder.begun.read_text(encoding="utf-8"))
    now = json.loads(scenario.to_json())
    changed = sorted(key for key in {*begun, *now} - {"workers"} if begun.get(key) != now.get(key))
    if changed:
        raise RunFolderError(
            f"{folder.scenario} has been changed since the run began ({', '.join(changed)}); a run goes on only as it"
            f" began: undo the change, or run it anew: fedpress simulate {folder.scenario} --out ANOTHER"
        )
    return folder, scenario


def folder_of(scenario: Scenario, out: Path | str | None) -> RunFolder:
    """Return the run folder at `out`: of a run of this scenario that is not finished, else a new one.

    Raises:
        RunFolderError: it holds something else.
    """
    if out is None or not RunFolder(Path(out)).begun.is_file():
        return new_folder(scenario, out)
    folder, begun = unfinished(out)
    if begun.model_dump(exclude={"workers"}) != scenario.model_dump(exclude={"workers"}):
        raise RunFolderError(f"{folder.path} holds an unfinished run of another scenario; give another folder")
    return folder


def plan(
    workload: Workload, folder: RunFolder, observer: Observer | None = None, *, keep_payloads: bool = False
) -> server.Plan:
    """Return the server's plan, which keeps the run folder up to date."""
    scenario = workload.scenario
    choice = scenario.server
    rules: dict[str, Callable[[], optimize.ServerOptimizer]] = {
        "sgd": lambda: optimize.sgd(choice.learning_rate, choice.momentum),
        "adam": lambda: optimize.adam(choice.learning_rate, choice.beta1, choice.beta2, choice.epsilon),
        "yogi": lambda: optimize.yogi(choice.learning_rate, choice.beta1, choice.beta2, choice.epsilon),
        "adagrad": lambda: optimize.adagrad(choice.learning_rate, choice.epsilon),
        "majority_vote": lambda: optimize.majority_vote(choice.learning_rate),
    }
    sampling = scenario.sampling
    buffered = sampling.schedule == "buffered"
    if not folder.partition.exists():
        workload.save_parts(folder)
    options: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "optimizer": rules[choice.optimizer](),
        "averaging": choice.averaging,
        "prediction": workload.prediction,
        "schedule": Buffered(sampling.per_round, sampling.staleness, sampling.max_staleness) if buffered else None,
        "min_replies": sampling.min_replies,
        "deadline": sampling.deadline,
        "seed": scenario.seed,
    }
    whole = {
        **options,
        **tier_strategy.shares(scenario, None),
        "downlink": tier_strategy.downlink(workload),
        "layout": workload.layout,
        "federation": workload.federation,
        "on_accepted": folder.save_payload if keep_payloads else None,
        "checkpoints": folder.checkpoints,
    }
    clients = ClientModels() if scenario.students.teachers == "clients" and scenario.students.tiers else None
    if clients is not None or scenario.fusion is not None:
        whole |= {"clients": clients, "fusion": students.fusion(workload)}
    if scenario.sparsity is not None:
        whole["masks"] = sparsity.schedule(workload, folder)
    strategy = tier_strategy.strategy(workload, folder, options, whole) if workload.tiers else SparseFed(**whole)
    writer = Writer(workload, folder, strategy, observer)
    on_search = observer.on_search if observer else lambda tier, step: None
    strategy.companions["results"] = writer
    return server.Plan(
        task=workload.task,
        strategy=strategy,
        model=workload.fresh_model(),
        rounds=scenario.rounds,
        watcher=writer,
        evaluate_on=getattr(workload.task.data(), scenario.evaluation.split),
        evaluate_every=scenario.evaluation.every,
        publisher=students.publisher(workload, folder, on_search, clients),
        publish_every=scenario.students.every,
        downloads_per_tier=scenario.students.downloads_per_tier,
        device=scenario.training.device,
    )


@dataclass
class Writer:
    """Keeps the run folder up to date and passes the news on."""

    workload: Workload
    folder: RunFolder
    strategy: SparseFed
    observer: Observer | None
    status: Literal["running", "finished", "interrupted"] = "running"
    rounds: list[RoundResult] = field(default_factory=list)
    students: list[StudentResult] = field(default_factory=list)
    digest: str = ""
    began: float = field(default_factory=monotonic)
    virtual_seconds: float = 0.0
    keep_state: bool = False
    states: Callable[[], str] = str
    """Digest of the clients' states, where the engine knows it: the model's SHA-256 then covers them too."""

    def saved(self) -> State:
        """Return the figures so far."""
        meta = {
            "rounds": [result.model_dump(mode="json") for result in self.rounds],
            "students": [result.model_dump(mode="json") for result in self.students],
            "virtual_seconds": self.virtual_seconds,
            "seconds": monotonic() - self.began,
        }
        return State({}, meta)

    def restore(self, state: State) -> None:
        """Take up the figures of the rounds before."""
        self.rounds = [RoundResult(**entry) for entry in state.meta["rounds"]]
        self.students = [StudentResult(**entry) for entry in state.meta["students"]]
        self.virtual_seconds = state.meta["virtual_seconds"]
        self.began = monotonic() - state.meta["seconds"]
        if self.observer and self.rounds:
            self.observer.on_resume(self.rounds)

    def on_round(self, summary: RoundSummary, evaluation: Evaluation | None) -> None:
        """Enter a round."""
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
            staleness=summary.staleness,
            max_staleness=summary.max_staleness,
            tiers={name: _tier_round(part) for name, part in summary.tiers.items()},
            epoch=summary.epoch,
            density=summary.density,
        )
        self.rounds.append(result)
        self.folder.save_results(self.results())
        if self.observer:
            self.observer.on_round(result)
        if summary.round == HOPELESS_ROUNDS and not any(r.replies for r in self.rounds):
            reason = summary.refusals[-1].detail if summary.refusals else "no reply at all"
            raise RunError(f"the first {HOPELESS_ROUNDS} rounds brought no usable reply; the last one: {reason}")

    def on_students(self, deliveries: list[server.Delivery]) -> None:
        """Enter the students that were downloaded; one line each, however many clients took it."""
        by_tier: dict[str, list[server.Delivery]] = {}
        for delivery in deliveries:
            by_tier.setdefault(delivery.student.tier, []).append(delivery)
        for tier, received in by_tier.items():
            good = [delivery for delivery in received if delivery.accuracy is not None]
            for bad in received:
                if bad.error:
                    getLogger("flwr").log(WARNING, "node %d could not take student %s: %s", bad.node, tier, bad.error)
            if not good:
                raise RunError(f"student {tier!r} was published, but no client could take it: {received[-1].error}")
            student, accuracy = good[0].student, good[0].accuracy
            assert accuracy is not None
            if student.warning:
                getLogger("flwr").log(WARNING, "student %s: %s", tier, student.warning)
            details = {
                "candidates": [asdict(candidate) for candidate in student.candidates],
                **{key: [row._asdict() for row in getattr(student, key)] for key in ("stages", "curve", "timings")},
            }
            result = StudentResult(**{**student._asdict(), **details}, accuracy=accuracy)
            self.students.append(result)
            if self.observer:
                self.observer.on_student(result)
        self.write("running")

    def on_end(self, model: nn.Module, digest: str) -> None:
        """Save the final model and the figures so far."""
        self.digest = digest
        safetensors.torch.save_model(model, str(self.folder.model))
        for tier in self.tiers:
            self.folder.tiers.mkdir(exist_ok=True)
            tier.model.load_state_dict(tier.strategy.model.published.to_torch_state_dict())
            safetensors.torch.save_model(tier.model, str(self.folder.tiers / f"{tier.name}.safetensors"))
        self.write("running")

    def on_finished(self) -> None:
        """Complete the digest, say that the run is finished, and remove what it would need to go on."""
        if states := self.states():
            self.digest = sha256(f"{self.digest} {states}".encode()).hexdigest()
        self.write("finished")
        if not self.keep_state:
            self.folder.clear_state()

    def write(self, status: Literal["running", "finished", "interrupted"]) -> None:
        """Bring ledger and figures in the folder up to date."""
        self.status = status
        ledgers = [books.ledger for books in self.strategy.accounts.values()]
        (Ledger.merged(ledgers) if self.tiers else ledgers[0]).save(self.folder.ledger)
        for tier in self.tiers:
            self.folder.tiers.mkdir(exist_ok=True)
            tier.strategy.ledger.save(self.folder.tiers / f"{tier.name}.csv")
        self.folder.save_results(self.results())

    def results(self) -> Results:
        """Return the figures so far."""
        strategy, accounts = self.strategy, self.strategy.accounts
        evaluated = [r.accuracy for r in self.rounds[-server.FINAL_ROUNDS :] if r.accuracy is not None]
        dense = {
            direction: sum(sizes[way] * accounts[name].messages[direction] for name, sizes in self._dense_sizes.items())
            for way, direction in enumerate(("up", "down"))
        }
        return Results(
            scenario=self.workload.scenario.model_dump(mode="json"),
            seed=self.workload.scenario.seed,
            status=self.status,
            rounds=self.rounds,
            totals=Totals(
                up_bytes=sum(books.ledger.total(direction="up") for books in accounts.values()),
                down_bytes=sum(books.ledger.total(direction="down") for books in accounts.values()),
                dense_up_bytes=dense["up"],
                dense_down_bytes=dense["down"],
                bundle_bytes=sum(books.ledger.total(kind="bundle") for books in accounts.values()),
            ),
            model=ModelInfo(parameters=self.workload.layout.size, sha256=self.digest),
            students=self.students,
            layers=[LayerDensity(name=n, size=size, sent=sent) for n, size, sent in strategy.density_by_layer()],
            faults=dict(sorted(self.workload.faults.struck.items())) if self.workload.faults else {},
            lost_states=sum(books.lost_states for books in accounts.values()),
            tiers=[self._tier_result(tier) for tier in self.tiers],
            accuracy=sum(evaluated) / len(evaluated) if evaluated else None,
            seconds=monotonic() - self.began,
        )

    @property
    def tiers(self) -> tuple[TrainingTier, ...]:
        """The tiers that train."""
        return self.strategy.training_tiers if isinstance(self.strategy, TieredFed) else ()

    def _tier_result(self, tier: TrainingTier) -> TierResult:
        last = [r.tiers[tier.name].accuracy for r in self.rounds[-server.FINAL_ROUNDS :] if tier.name in r.tiers]
        evaluated = [accuracy for accuracy in last if accuracy is not None]
        ledger = tier.strategy.ledger
        return TierResult(
            tier=tier.name,
            parameters=self.workload.tiers[tier.name].layout.size,
            accuracy=sum(evaluated) / len(evaluated) if evaluated else None,
            up_bytes=ledger.total(direction="up"),
            down_bytes=ledger.total(direction="down"),
        )

    @cached_property
    def _dense_sizes(self) -> dict[str, tuple[int, int]]:
        """Serialised size of a dense reply and of a dense order, as plain Flower sends them, for each model by name."""
        found = {}
        for name, work in {"": self.workload, **self.workload.tiers}.items():
            arrays = ArrayRecord(work.fresh_model().state_dict())
            metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0})
            reply = RecordDict({"arrays": arrays, "metrics": metrics})
            order = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
            found[name] = serde.recorddict_to_proto(reply).ByteSize(), serde.recorddict_to_proto(order).ByteSize()
        return found


def _tier_round(summary: RoundSummary) -> TierRound:
    evaluation = summary.evaluation or MetricRecord()
    return TierRound(
        accuracy=evaluation.get("accuracy"),  # type: ignore[arg-type]
        loss=evaluation.get("loss"),  # type: ignore[arg-type]
        up_bytes=summary.up_bytes,
        down_bytes=summary.down_bytes,
        replies=summary.replies,
    )


def simulate(
    scenario: Scenario,
    out: Path | str | None = None,
    observer: Observer | None = None,
    *,
    keep_state: bool = False,
    keep_payloads: bool = False,
    adjust: Callable[[server.Plan], None] = lambda _: None,
) -> Results:
    """Run a scenario and return its results, which the run folder holds too.

    Args:
        scenario: what to run.
        out: the run folder, new or empty; None makes a new one under `runs/`.
        observer: is told what happens.
        keep_payloads: whether the folder gets every accepted payload as a file.
        keep_state: whether checkpoints and clients' states stay in the folder after the end.
        adjust: is given the server's plan before it is carried out, to change what a scenario does not say.

    Raises:
        RunFolderError: `out` is not empty, or cannot be made.
        KeyboardInterrupt: passed on once the folder is whole.
    """
    return _run(new_folder(scenario, out), scenario, observer, keep_state, keep_payloads, adjust)


def resume(
    path: Path | str, observer: Observer | None = None, *, keep_state: bool = False, keep_payloads: bool = False
) -> Results:
    """Go on with a run that was killed or interrupted; its end is that of the undisturbed run, to the bit.

    Args:
        path: the run folder.
        observer: is told what happens from here on.
        keep_state: whether checkpoints and clients' states stay in the folder after the end.
        keep_payloads: whether the folder gets every payload accepted from here on as a file.

    Raises:
        RunFolderError: it is no such folder, its run is finished, or its scenario has been changed since.
        CheckpointError: its checkpoints cannot be used.
        EngineError: the run is still going on in another process.
        KeyboardInterrupt: passed on once the folder is whole.
    """
    return _run(*unfinished(path), observer, keep_state, keep_payloads)


def _run(
    folder: RunFolder,
    scenario: Scenario,
    observer: Observer | None,
    keep_state: bool,
    keep_payloads: bool,
    adjust: Callable[[server.Plan], None] = lambda _: None,
) -> Results:
    if observer:
        observer.on_start(scenario, folder)
    with worker_process.log_to_file(folder.log) as logger:
        config = {"workload": REFERENCE, "scenario": scenario.to_json(), "out": str(folder.path.resolve())}
        workload = Workload(scenario, folder.path)
        planned = plan(workload, folder, observer, keep_payloads=keep_payloads)
        writer = planned.watcher
        assert isinstance(writer, Writer)
        writer.keep_state = keep_state
        adjust(planned)
        try:
            with engine.InlineGrid(
                "fedpress.client.app:app",
                clients=scenario.clients,
                workers=scenario.worker_count,
                run_config=config,
                network=workload.network,
                injected=workload.faults,
                examples=workload.examples_a_round,
                log_file=folder.log,
                states=folder.client_states,
            ) as grid:
                folder.remove_leftovers()  # the engine's lock is held: no other run is at work here
                writer.states = grid.states_digest
                engine.run(server.server_app(lambda _: planned), grid, config)
        except BaseException as error:
            logger.exception("the run stopped: %s", type(error).__name__)
            if writer.rounds or not folder.results.exists():
                writer.write("interrupted")
            raise
        finally:
            if observer:
                observer.on_end(folder.load_results())
        return folder.load_results()
