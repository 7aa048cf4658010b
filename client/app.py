"""The ClientApp: trains on the client's examples, sends encoded updates, downloads its student.

The run's configuration names the workload: `workload` is a function of it that returns a `Job`, which has the `Work` of
each client. torch is imported only where it is needed, as Flower starts a process for every message.

The node's configuration may have `data-folder`, the node's own examples, `initial-weights`, its copy of the file that
the run begins with, `base-weights`, its copy of the pretrained weights that are never sent, `download-folder`, for its
students, and `workloads`, what it lets a server run (`fedpress.client.workloads`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from fedpress.client import workloads
from fedpress.client.mod import compress
from fedpress.client.state import stores
from fedpress.compression import entry_points, seeds
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Order
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.timing import Timer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn

    from fedpress.client.settings import Training
    from fedpress.compression.models.task import Evaluation, Examples, Task


class Work(Protocol):
    """Model, data and settings of one client."""

    @property
    def task(self) -> Task:
        """Model, loss and data."""

    @property
    def training(self) -> Training:
        """Settings of the local training."""

    @property
    def rounds(self) -> int:
        """Number of rounds of the run, for schedules of the learning rate."""

    @property
    def encoder(self) -> Encoder[Any]:
        """Encoder of the update."""

    @property
    def layout(self) -> Layout:
        """Layout of the model: which arrays are parameters and which are buffers."""

    @property
    def tier(self) -> str:
        """Tier of devices that train this model; empty: the global model."""

    def blank_model(self) -> nn.Module:
        """Return a new instance of the model, with any weights."""

    def initial(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the arrays of the initial model, as this client has it by itself; None: it has none.

        Raises:
            BaseError: It has other pretrained weights than the federation.
        """

    def examples(self, client: int) -> Examples:
        """Return the client's training examples."""

    def downloads(self, client: int) -> Path:
        """Return the client's folder for downloaded students."""


class Job(Protocol):
    """The work of all clients, where tiers of devices may train models of their own."""

    def of_client(self, client: int, tier: str | None = None) -> Work:
        """Return the work of one client.

        Args:
            client: index of the client.
            tier: the entry `tier` of the node's configuration; None: it has none.
        """


class WorkKey(NamedTuple):
    """Key of a client's work: the run's configuration, the client's index, and the tier in the node's configuration."""

    run_config: tuple[tuple[str, Any], ...]
    client: int
    tier: str | None

    @classmethod
    def of(cls, context: Context) -> WorkKey:
        """Return the key for a message's context."""
        tier = context.node_config.get("tier")
        config = workloads.run_config(context.run_config, context.node_config)
        return cls(tuple(sorted(config.items())), stores.client_index(context), None if tier is None else str(tier))


def _work(context: Context) -> Work:
    return _work_of(WorkKey.of(context))


def _work_of(key: WorkKey) -> Work:
    return _job(key.run_config).of_client(key.client, key.tier)


def preload(key: WorkKey) -> None:
    """Load examples, model and encoder of a key, for processes that are forked from this one."""
    work = _work_of(key)
    work.examples(key.client)
    work.blank_model()
    _ = work.encoder, work.layout


def forget() -> None:
    """Drop the loaded job, so that data is read again."""
    _job.cache_clear()


@lru_cache(maxsize=1)
def _job(run_config: tuple[tuple[str, Any], ...]) -> Job:
    config = dict(run_config)
    if "workload" not in config:
        raise ValueError(
            "the run's configuration has no 'workload' (\"module:function\" that returns the clients' work); "
            "add it to [tool.flwr.app.config] or to --run-config"
        )
    reference = str(config["workload"])
    workloads.check(reference, workloads.listed(config), "workload")
    job: Job = entry_points.load(reference)(config)
    return job


def train(message: Message, context: Context, timer: Timer) -> Message:
    """Train the received model on the client's examples; the mod turns the weights into an update.

    Args:
        message: model and order.
        context: Flower's context of the client.
        timer: counts the seconds of the training itself.

    Returns:
        A reply with the trained arrays, the metrics and, where the order asks for one, a vote on the mask.
    """
    from fedpress.client.training import train as local

    work = _work(context)
    client = stores.client_index(context)
    order = orders.read_order(message.content)
    examples = work.examples(client)
    model = _loaded(work, message)
    seed = seeds.derive(order.federation, order.round, client, "train")
    layout = work.layout
    if order.mask is not None:
        layout = layout.within(Mask(layout.size, order.mask))
    moments = stores.moments(context) if work.training.optimizer_state == "keep" else None
    with timer.of("training"):
        loss = local.train(
            model, examples, work.task.loss, work.training, seed, flatten.flags(layout), work.task.scored,
            round=order.round, rounds=work.rounds, moments=moments,
        )  # fmt: skip
    stores.leave_moments(context, moments or {})
    metrics = MetricRecord({"num-examples": len(examples.targets), "train-loss": loss})
    given = records.only_arrays(message.content)[1]
    trained = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items() if name in given}
    content = RecordDict({"arrays": records.views(trained), "metrics": metrics})
    if order.drop or order.grow:
        seed = seeds.derive(order.federation, order.round, client, "vote")
        content[orders.VOTE] = ConfigRecord({"mask": _vote(model, examples, work, layout, order, seed).bitmap})
    return Message(content, reply_to=message)


def running_statistics(
    context: Context, arrays: Mapping[str, NDArray[Any]], timer: Timer
) -> Mapping[str, NDArray[Any]]:
    """Return the running statistics of a received model on the client's examples; none where it has no such layer.

    Args:
        context: Flower's context of the client.
        arrays: Arrays of the model, as it came.
        timer: Counts the seconds as training.
    """
    work = _work(context)
    if not work.layout.norm_momenta:
        return {}
    from fedpress.client.training import train as local

    model = work.blank_model()
    model.load_state_dict(records.from_numpy(dict(arrays)).to_torch_state_dict())
    with timer.of("training"):
        return local.running_statistics(model, work.examples(stores.client_index(context)), work.training)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received model on the client's own examples.

    Args:
        message: model and order.
        context: Flower's context of the client.
    """
    from fedpress.compression.models import task

    work = _work(context)
    evaluation = task.evaluate(_loaded(work, message), work.task, work.examples(stores.client_index(context)))
    return _metrics_reply(evaluation, message)


def tier(message: Message, context: Context) -> Message:
    """Answer with the name of the tier whose model this client trains.

    Args:
        message: the question.
        context: Flower's context of the client.
    """
    return Message(RecordDict({"tier": ConfigRecord({"name": _work(context).tier})}), reply_to=message)


def student(message: Message, context: Context) -> Message:
    """Take a student's bundle: verify it, keep it, rebuild it and evaluate it on test data.

    Args:
        message: holds one ConfigRecord with `bundle` (bytes) and `sha256` (hexadecimal digits).
        context: Flower's context of the client.

    Raises:
        ValueError: the message holds no such offer.
        BundleError: the bundle does not verify.
    """
    from fedpress.client.download import receive
    from fedpress.compression.models import task

    work = _work(context)
    offer: ConfigRecord = next(iter(message.content.config_records.values()))
    data, sha256 = offer.get("bundle"), offer.get("sha256")
    if not isinstance(data, bytes) or not isinstance(sha256, str):
        raise ValueError("the offer of a student must hold 'bundle' (bytes) and 'sha256' (text)")
    chosen = context.node_config.get("download-folder")
    folder = Path(str(chosen)) if chosen else work.downloads(stores.client_index(context))
    path = receive.receive(data, sha256, folder)
    base: Path | None = getattr(work, "base", None)  # this device's pretrained weights; work of others may have none
    return _metrics_reply(task.evaluate(receive.load(path, work.task, base), work.task, work.task.data().test), message)


def _metrics_reply(evaluation: Evaluation, message: Message) -> Message:
    # The weight of both figures in the mean over clients: all answers count alike, whoever has them.
    weight = evaluation.answers
    metrics = MetricRecord({"num-examples": weight, "loss": evaluation.loss, "accuracy": evaluation.accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _vote(model: nn.Module, examples: Examples, work: Work, layout: Layout, order: Order, seed: int) -> Mask:
    """Return the mask that this client proposes in place of the layout's."""
    from fedpress.client.training import train as local
    from fedpress.compression.models.pruning import dynamic_sparsity

    weights = flatten.flatten(records.to_numpy(ArrayRecord(model.state_dict())), layout)
    by_name = local.gradient(copy.deepcopy(model), examples, work.task.loss, work.training, seed, work.task.scored)
    dense = Layout(tuple(spec._replace(dtype="float32") for spec in layout.parameters), tied=layout.tied)
    gradient = flatten.flatten({spec.name: by_name[spec.name] for spec in layout.parameters}, dense)
    return dynamic_sparsity.drop_and_grow(weights, gradient, layout, order.drop, order.grow)


def _loaded(work: Work, message: Message) -> nn.Module:
    model = work.blank_model()
    _, arrays = records.only_arrays(message.content)
    state = arrays.to_torch_state_dict()
    lacking = [spec.name for spec in work.layout.frozen if spec.name not in state]
    if lacking:
        import torch

        own = work.initial()
        assert own is not None  # or the mod would have handed them over
        state |= {name: torch.from_numpy(own[name]) for name in lacking}
    model.load_state_dict(state)
    return model


class TrainingApp(ClientApp):
    """The ClientApp, with what processes need that run it message after message.

    Args:
        mods: Flower mods between `compress(...)` and the training: they see the model and the trained weights.

    Attributes:
        latest: key of the last message's work, to be loaded in advance for the next; None: there was no message.
        timer: seconds of `training`.
    """

    def __init__(self, *mods: Mod) -> None:
        super().__init__(
            mods=[
                compress(
                    lambda context: _work(context).encoder,
                    layout=lambda context: _work(context).layout,
                    initial=lambda context: _work(context).initial(),
                    statistics=lambda context, arrays: running_statistics(context, arrays, self.timer),
                    app_has_frozen=True,
                ),
                *mods,
            ]
        )
        self.latest: WorkKey | None = None
        self.timer = Timer()
        self.train()(lambda message, context: train(message, context, self.timer))
        self.evaluate()(evaluate)
        self.query("tier")(tier)
        self.query("student")(student)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; its key becomes `latest`."""
        self.latest = WorkKey.of(context)
        return super().__call__(message, context)


app = TrainingApp()
