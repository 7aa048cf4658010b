"""The ServerApp: federated rounds, evaluation of the held model, making and delivery of students.

A `Plan` has the parts of a run; `app` takes it from the function that `plan` names in the run's configuration.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from logging import WARNING
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from flwr.supercore import log
from torch import nn

from fedpress.compression import entry_points
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import pieces, records
from fedpress.compression.models.task import Evaluation, Examples, Task, evaluate, require_evaluable
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.publishing.publish import Published, Publisher
from fedpress.server.rounds import exchange, threaded_grid
from fedpress.server.rounds.accounting import RoundSummary
from fedpress.server.rounds.exchange import Answer
from fedpress.server.rounds.orders import unguessable
from fedpress.server.rounds.outcome import Outcome, RunFailed
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.server.strategies.tiered_fed import TieredFed, TrainingTier

FINAL_ROUNDS = 10
"""A run's accuracy is the mean over this many last rounds: one round alone swings by several points."""


DELIVERY_SECONDS = 3600.0
"""Limit of the wait for real clients to take their students, in seconds."""


class Delivery(NamedTuple):
    """Delivery of a student to one client."""

    student: Published
    node: int
    accuracy: float | None  # on test data, as the client claims; None: the delivery failed
    error: str = ""


class RunRecord:
    """Observer of a run: every method is empty, and a subclass overrides those that it needs."""

    def on_round(self, summary: RoundSummary, evaluation: Evaluation | None) -> None:
        """Record a round that is over.

        Args:
            summary: figures of the round.
            evaluation: evaluation of the held model; None: none was due.
        """

    def on_silence(self, server_round: int, attempts: int) -> None:
        """Record that no node has answered a round, which is asked again.

        Args:
            server_round: number of the round.
            attempts: number of times that it was asked without an answer.
        """

    def on_students(self, deliveries: list[Delivery]) -> None:
        """Record students that were published and delivered."""

    def on_end(self, model: nn.Module, digest: str) -> None:
        """Record the final model: the rounds are over, the last students still to come.

        Args:
            model: the model with the final weights.
            digest: SHA-256 of the server's state (`server_digest`).
        """

    def on_finished(self) -> None:
        """Close the record: the run is over."""

    def on_failed(self, reason: str) -> None:
        """Close the record: the run has failed (`rounds.outcome`), for this reason."""


@dataclass
class Plan:
    """Parts of a run on the server.

    Attributes:
        task: model, data and loss.
        strategy: strategy of the rounds.
        model: the initial model; afterwards it holds the final weights.
        rounds: number of rounds.
        evaluate_on: examples that the held model is evaluated on.
        evaluate_every: rounds from one evaluation to the next; the first round and the last ten have one, too.
        publisher: publisher of students; None: there are none.
        publish_every: rounds from one publication to the next; 0: only at the end.
        downloads_per_tier: number of clients of each tier that get its student.
        record: observer of the run.
        device: device of the evaluation: cpu or cuda.
        patient: whether a round that no node has answered is asked again, as devices may be offline; else it counts as
            a round without a reply, three of which in a row end the run.
        checked: whether the publisher has been asked already if all students can be made.
    """

    task: Task
    strategy: SparseFed
    model: nn.Module
    rounds: int
    evaluate_on: Examples
    record: RunRecord = field(default_factory=RunRecord)
    evaluate_every: int = 1
    publisher: Publisher | None = None
    publish_every: int = 0
    downloads_per_tier: int = 1
    device: str = "cpu"
    patient: bool = False
    checked: bool = False


def serve(plan: Plan, grid: Grid) -> None:
    """Carry out the plan on a grid, and record if the run fails.

    Args:
        plan: parts of the run.
        grid: grid of the nodes.

    Raises:
        RunFailed: no reply could be used, or the model is not finite (`rounds.outcome`).
        FedpressError: what the plan asks for cannot be done.
    """
    try:
        _serve(plan, threaded_grid.patient(grid))
    except RunFailed as failure:
        plan.record.on_failed(str(failure))
        raise


def _serve(plan: Plan, grid: Grid) -> None:
    """Carry out the plan; a strategy that finds a checkpoint resumes from it."""
    latest: Evaluation | None = None
    tiers = plan.strategy.training_tiers if isinstance(plan.strategy, TieredFed) else ()

    def load(arrays: ArrayRecord) -> nn.Module:
        plan.model.load_state_dict(arrays.to_torch_state_dict())
        return plan.model

    def evaluate_held(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        nonlocal latest
        latest = None
        due = server_round == 1 or server_round % plan.evaluate_every == 0
        if server_round and (due or server_round > plan.rounds - FINAL_ROUNDS):
            latest = evaluate(load(arrays), plan.task, plan.evaluate_on, device=plan.device)
            plan.model.to("cpu")
            return MetricRecord({"accuracy": latest.accuracy, "loss": latest.loss})
        return None

    def load_tier(tier: TrainingTier) -> nn.Module:
        tier.model.load_state_dict(tier.federation.model.published.to_torch_state_dict())
        return tier.model

    def publish(version: int, arrays: ArrayRecord, publisher: Publisher) -> None:
        students = publisher.publish(version, load(arrays), {tier.name: load_tier(tier) for tier in tiers})
        plan.record.on_students(deliver(plan, grid, version, students))

    def after_round(summary: RoundSummary) -> None:
        losses = {"": latest.loss} if latest else {}
        for tier in tiers if latest else ():
            evaluation = evaluate(load_tier(tier), plan.task, plan.evaluate_on, device=plan.device)
            tier.model.to("cpu")
            metrics = MetricRecord({"accuracy": evaluation.accuracy, "loss": evaluation.loss})
            summary.tiers[tier.name].evaluation = metrics
            losses[tier.name] = evaluation.loss
        plan.record.on_round(summary, latest)
        outcome.after(summary, losses)
        due = plan.publish_every and summary.round % plan.publish_every == 0
        if plan.publisher and due and summary.round < plan.rounds:
            try:
                publish(summary.round, summary.arrays, plan.publisher)
            except FedpressError as error:  # the run goes on without this set of students; the last one must succeed
                log(WARNING, "no students of version %d: %s", summary.round, error)

    require_evaluable(plan.model, plan.task, plan.evaluate_on)
    if plan.publisher and not plan.checked:
        plan.publisher.check(plan.model)
    outcome = Outcome(plan.rounds, plan.strategy.federations)
    plan.strategy.companions["outcome"] = outcome
    result = Result(arrays=ArrayRecord(plan.model.state_dict()))
    on_silence = plan.record.on_silence if plan.patient else None
    try:
        for summary in plan.strategy.run(grid, result, plan.rounds, evaluate_fn=evaluate_held, on_silence=on_silence):
            with plan.strategy.timer.of("report"):
                after_round(summary)
    except FloatingPointError as error:  # the step of a model: the checkpoint before it stays the newest
        raise RunFailed(str(error)) from error
    plan.record.on_end(load(result.arrays), server_digest(plan.strategy, result.arrays))
    if plan.publisher:
        publish(plan.rounds, result.arrays, plan.publisher)
    plan.record.on_finished()


def deliver(plan: Plan, grid: Grid, server_round: int, students: list[Published]) -> list[Delivery]:
    """Send each student to some clients of its tier, and return their reports.

    Nodes that train a tier's model are of that tier.

    Args:
        plan: parts of the run.
        grid: grid of the nodes.
        server_round: round that the bytes belong to.
        students: published students, one of a tier.
    """
    grid = threaded_grid.patient(grid)
    nodes = list(grid.get_node_ids())
    members: dict[str, list[int]] = {}
    if isinstance(plan.strategy, TieredFed):
        members = {tier.name: plan.strategy.nodes(grid, tier.name) for tier in plan.strategy.training_tiers}
        nodes = plan.strategy.nodes(grid, "")
    untrained = [published.tier for published in students if published.tier not in members]
    members |= tier_members(nodes, untrained, plan.strategy.tiers)
    offers: dict[int, Published] = {}
    for published in students:
        offers.update(dict.fromkeys(members[published.tier][: plan.downloads_per_tier], published))
    messages = []
    for node, published in offers.items():
        offer = ConfigRecord(
            {"bundle": published.path.read_bytes(), "sha256": published.sha256, "tier": published.tier}
        )
        messages.append(
            Message(
                RecordDict({"student": offer}), dst_node_id=node, message_type="query.student", group_id=unguessable()
            )
        )
    accounts = plan.strategy.accounts
    accounting = {node: accounts.get(published.tier, accounts[""]) for node, published in offers.items()}
    for message in messages:
        message.content = pieces.cut(message.content)
        accounting[message.metadata.dst_node_id].bill(server_round, message.metadata.dst_node_id, "down", message)
    timeout = DELIVERY_SECONDS if getattr(grid, "clock", None) is None else None
    deliveries = []
    for node, answer in exchange.ask(grid, messages, timeout).items():
        if answer.reply:
            accounting[node].bill(server_round, node, "up", answer.reply)
        accuracy, error = _claimed_accuracy(answer)
        deliveries.append(Delivery(offers[node], node, accuracy, error))
    return deliveries


def _claimed_accuracy(answer: Answer) -> tuple[float | None, str]:
    """Return the accuracy that a client says its student has, or None and what is wrong with its answer."""
    if answer.content is None:
        return None, answer.error
    claims = [record["accuracy"] for record in answer.content.metric_records.values() if "accuracy" in record]
    if len(claims) == 1 and not isinstance(claims[0], list) and 0 <= claims[0] <= 1:
        return float(claims[0]), ""
    return None, f"its answer has no accuracy from 0 to 1, but {records.excerpt(claims, 80)}"


def tier_members(nodes: Iterable[int], tiers: Sequence[str], reported: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the nodes of each tier, in order; the log names a tier that is unknown, or that has no node.

    A node is of the tier that it has reported. Nodes that have reported none belong to the tiers in turn: the i-th of
    them to tier i modulo the number of tiers.

    Args:
        nodes: ids of the nodes.
        tiers: names of the tiers.
        reported: name of the tier that a node has reported, by its id.

    >>> tier_members([1, 2, 3, 4], ["phone", "sensor"], {})
    {'phone': [1, 3], 'sensor': [2, 4]}
    >>> tier_members([1, 2, 3, 4], ["phone", "sensor"], {1: "sensor"})
    {'phone': [2, 4], 'sensor': [1, 3]}
    """
    known = ", ".join(tiers) or "none"
    members: dict[str, list[int]] = {tier: [] for tier in tiers}
    silent = []
    for node in sorted(nodes):
        if node not in reported:
            silent.append(node)
        elif reported[node] in members:
            members[reported[node]].append(node)
        else:
            tier = records.excerpt(reported[node])
            log(WARNING, "node %d says it is of tier %r and gets no student: tiers are %s", node, tier, known)
    for number, node in enumerate(silent):
        if tiers:
            members[tiers[number % len(tiers)]].append(node)
    for tier, of_tier in members.items():
        if not of_tier:
            log(WARNING, "no node is of tier %r, so nobody gets its student: tiers are %s", tier, known)
    return {tier: sorted(of_tier) for tier, of_tier in members.items()}


def server_digest(strategy: SparseFed, arrays: ArrayRecord) -> str:
    """Return the SHA-256 of master, held model, buffers and optimizer state, and of those of tiers that train.

    Args:
        strategy: strategy after its last round.
        arrays: the held model.
    """
    digest = sha256()
    _digest(strategy.model, arrays, digest.update)
    for tier in strategy.training_tiers if isinstance(strategy, TieredFed) else ():
        model = tier.federation.model
        of_tier = sha256()
        _digest(model, model.published, of_tier.update)
        digest.update(f"{tier.name} {of_tier.hexdigest()}".encode())
    return digest.hexdigest()


def _digest(model: GlobalModel, arrays: ArrayRecord, update: Callable[[Any], None]) -> None:
    """Feed a digest with master, mask, held model and optimizer state, one array at a time."""
    update(model.master)
    if model.masks.mask is not None:
        update(model.masks.mask.bitmap)
    for name, array in records.Arrays(arrays).items():
        update(name.encode() + str(array.dtype).encode())
        update(np.ascontiguousarray(array))
    for name, tensor in sorted(model.optimizer.state.items()):
        update(name.encode())
        update(np.ascontiguousarray(tensor.numpy()))


def server_app(plan_of: Callable[[UserConfig], Plan]) -> ServerApp:
    """Return a ServerApp that carries out the plan made from the run's configuration."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(plan_of(context.run_config), grid)

    return app


def _plan_from_config(run_config: UserConfig) -> Plan:
    if "plan" not in run_config:
        raise ValueError(
            "the run's configuration has no 'plan' (\"module:function\" that returns what the server is to do); "
            "add it to [tool.flwr.app.config] or to --run-config"
        )
    plan: Plan = entry_points.load(str(run_config["plan"]))(run_config)
    return plan


app = server_app(_plan_from_config)
