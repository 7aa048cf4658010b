"""The ClientApp's handlers, on a small task: training, votes, evaluation, tiers, and students that arrive."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedpress.client import app
from fedpress.client.settings import Training
from fedpress.compression.encoders import encoder
from fedpress.compression.messages import orders
from fedpress.compression.models.bundles import errors, writer
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.task import IGNORED, Examples, Splits, Task
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.timing import Timer


class Signs(Task):
    """Which of two numbers is larger."""

    name = "signs"

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def data(self) -> Splits:
        part = examples(40)
        return Splits(part, part, part, part)


def examples(count: int) -> Examples:
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    return Examples(inputs, inputs.argmax(dim=1))


class Work:
    """A client's work, and at once the job of all clients."""

    task = Signs()
    training = Training(epochs=5, batch_size=10, learning_rate=0.5)
    rounds = 10
    encoder = encoder.dense()
    layout = Layout.of(Signs().model())

    def __init__(self, config: Any, tier: str = "") -> None:
        self.config, self.tier, self.loads = config, tier, 0

    def of_client(self, client: int, tier: str | None = None) -> "Work":
        return Work(self.config, tier or "")

    def blank_model(self) -> nn.Module:
        return Signs().model()

    def initial(self) -> None:
        return None

    def examples(self, client: int) -> Examples:
        return examples(40)

    def downloads(self, client: int) -> Path:
        return Path(self.config["downloads"]) / str(client)


load = Work


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    app.forget()
    yield
    app.forget()


def context(config: dict[str, Any] | None = None, **node_config: Any) -> Context:
    given = {"workload": "tests.client.test_app:load", **(config or {})}
    return Context(run_id=1, node_id=3, node_config=node_config, state=RecordDict(), run_config=given)


def zeros() -> ArrayRecord:
    model = Signs().model()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return ArrayRecord(model.state_dict())


def message(kind: str = "train", **more: Any) -> Message:
    order = orders.Order("fed", 1, 1, mask_version=0, version=0, accepted=0, **more)
    config = ConfigRecord(dict(orders.write_order(order)))
    return Message(RecordDict({"arrays": zeros(), "config": config}), dst_node_id=3, message_type=kind)


def test_a_client_trains_and_says_on_how_many_examples() -> None:
    timer = Timer()
    reply = app.train(message(), context(), timer)
    metrics = reply.content.metric_records["metrics"]
    assert metrics["num-examples"] == 40 and metrics["train-loss"] < np.log(2)  # type: ignore[operator]
    assert timer.seconds["training"] > 0 and orders.VOTE not in reply.content
    trained = Message(RecordDict({"arrays": reply.content["arrays"]}), dst_node_id=3, message_type="evaluate")
    evaluated = app.evaluate(trained, context()).content.metric_records["metrics"]
    assert evaluated["accuracy"] > 0.9 and evaluated["num-examples"] == 40  # type: ignore[operator]


class SevenLabeled(Work):
    """A client of whose examples seven have a target."""

    def of_client(self, client: int, tier: str | None = None) -> "Work":
        return self

    def examples(self, client: int) -> Examples:
        part = examples(40)
        return Examples(part.inputs, torch.where(torch.arange(40) < 7, part.targets, IGNORED))


def test_a_clients_figures_have_the_weight_of_the_answers_that_count() -> None:
    asked = Message(RecordDict({"arrays": zeros()}), dst_node_id=3, message_type="evaluate")
    reply = app.evaluate(asked, context({"workload": "tests.client.test_app:SevenLabeled"}))
    assert reply.content.metric_records["metrics"]["num-examples"] == 7


def test_a_client_trains_within_the_mask_and_votes_for_as_many_weights() -> None:
    mask = Mask.of(np.array([True, False, True, False, True, True]))
    reply = app.train(message(mask=mask.bitmap, drop=0.5, grow=0.5), context(), Timer())
    arrays = {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}
    weights = flatten.flatten(arrays, Work.layout)
    assert not weights[~mask.flags].any() and weights[mask.flags].any()
    vote = Mask(6, reply.content.config_records[orders.VOTE]["mask"])  # type: ignore[arg-type]
    assert vote.count == mask.count and vote != mask


def test_a_client_names_its_tier() -> None:
    asked = Message(RecordDict({"tier": ConfigRecord()}), dst_node_id=3, message_type="query.tier")
    reply = app.tier(asked, context(tier="phone"))
    assert reply.content.config_records["tier"]["name"] == "phone"


def bundle() -> bytes:
    torch.manual_seed(0)
    model = Signs().model()
    return writer.save(
        model, quantize.quantize(model), torch.zeros(1, 2), task="signs", tier="phone", version=7, metrics={}
    )


def offer(**entries: Any) -> Message:
    return Message(RecordDict({"student": ConfigRecord(entries)}), dst_node_id=3, message_type="query.student")


def test_a_student_is_kept_and_evaluated_on_test_data(tmp_path: Path) -> None:
    data = bundle()
    sent = offer(bundle=data, sha256=hashlib.sha256(data).hexdigest())
    reply = app.student(sent, context({"downloads": str(tmp_path)}))
    assert reply.content.metric_records["metrics"]["num-examples"] == 40
    assert (tmp_path / "3" / "phone-0000000007.fpb").read_bytes() == data
    app.student(sent, context({"downloads": "/nowhere"}, **{"download-folder": str(tmp_path / "mine")}))
    assert (tmp_path / "mine" / "phone-0000000007.fpb").read_bytes() == data


def test_an_offer_that_is_malformed_or_damaged_leaves_no_file(tmp_path: Path) -> None:
    here = context({"downloads": str(tmp_path)})
    with pytest.raises(ValueError, match="must hold 'bundle'"):
        app.student(offer(sha256="00"), here)
    with pytest.raises(errors.BundleError, match="the server announced"):
        app.student(offer(bundle=bundle(), sha256="00"), here)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_workload_names_the_key() -> None:
    empty = Context(run_id=1, node_id=3, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ValueError, match="no 'workload'.*--run-config"):
        app.train(message(), empty, Timer())


def test_the_key_of_a_clients_work_has_what_its_node_adds() -> None:
    key = app.WorkKey.of(context({"a": 1}, **{"partition-id": 5, "tier": "phone", "data-folder": "/data"}))
    assert (key.client, key.tier) == (5, "phone")
    assert dict(key.run_config) == {"workload": "tests.client.test_app:load", "a": 1, "data-folder": "/data"}
    assert app.WorkKey.of(context()).tier is None


def test_the_app_remembers_the_last_messages_work_for_processes_that_load_in_advance() -> None:
    made = app.TrainingApp()
    assert made.latest is None
    here = context()
    reply = made(message(), here)
    assert orders.read_answer(reply.content).ticket == 1 and made.timer.seconds["training"] > 0
    assert made.latest == app.WorkKey.of(here)
    app.preload(made.latest)
