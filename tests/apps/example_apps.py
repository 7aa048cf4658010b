"""Client apps of the kinds that people bring from Flower's examples, all on digits; `kind` in the run's configuration.

`app` knows nothing but its arrays, `told` has a layout.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fedpress.client.mod import compress
from fedpress.compression.encoders import recipes
from fedpress.compression.tensors.layout import Layout

torch.set_num_threads(1)


class Tied(nn.Module):
    """A network whose first and last layer share a matrix, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 64)
        self.decode = nn.Linear(64, 64)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.decode(torch.relu(self.encode(images)))))
        return out


class Adapted(nn.Module):
    """A frozen base with a low-rank adapter: the whole state_dict travels."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
        self.base.requires_grad_(False)
        self.down, self.up = nn.Linear(512, 4, bias=False), nn.Linear(4, 10, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.up(self.down(self.base(images)))
        return out


def make_model(kind: str) -> nn.Module:
    torch.manual_seed(7)
    if kind == "tied":
        return Tied()
    if kind == "adapter":
        return Adapted()
    if kind == "tabular":
        return nn.Linear(14, 1)
    if kind == "logistic":
        return nn.Linear(64, 10)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64, eps=1e-3), nn.ReLU(), nn.Linear(64, 10))


KERAS = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}


def names_of(kind: str, model: nn.Module) -> dict[str, str]:
    """Return the names on the wire by those of the state_dict; counters stay at home where the kind has none."""
    known = list(model.state_dict())
    if kind in ("numbered", "logistic"):
        floats = [name for name in known if not name.endswith("num_batches_tracked")]
        return {name: str(index) for index, name in enumerate(floats)}
    if kind == "keras":
        parts = [name.rpartition(".") for name in known if not name.endswith("num_batches_tracked")]
        return {f"{layer}.{last}": f"layer_{layer}/{KERAS.get(last, last)}:0" for layer, _, last in parts}
    return {name: name for name in known}


def arrays_of(kind: str, model: nn.Module) -> dict[str, NDArray[Any]]:
    state = model.state_dict()
    arrays = {wire: state[name].numpy().copy() for name, wire in names_of(kind, model).items()}
    if kind == "logistic":  # as scikit-learn begins with
        return {name: array.astype(np.float64) for name, array in arrays.items()}
    return arrays


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def load(kind: str, arrays: ArrayRecord) -> nn.Module:
    model = make_model(kind)
    state = model.state_dict()
    for name, wire in names_of(kind, model).items():
        state[name] = torch.from_numpy(arrays[wire].numpy().copy()).to(state[name].dtype)
    model.load_state_dict(state)
    return model


@functools.cache
def digits_of_the_test() -> Any:
    return load_digits()


def examples(kind: str, partition: int | None, partitions: int) -> tuple[torch.Tensor, torch.Tensor]:
    digits = digits_of_the_test()
    chosen = slice(1500, None) if partition is None else slice(partition, 1500, partitions)
    images = torch.from_numpy((digits.data[chosen] / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target[chosen].astype(np.int64))
    if kind == "tabular":
        return images[:, 18:32], (labels >= 5).float()[:, None]
    return images, labels


def layout_of(config: UserConfig) -> Layout:
    kind = str(config["kind"])
    model = make_model(kind)
    if kind == "numbered":
        return Layout.of_arrays(arrays_of(kind, model), buffers=["4", "5"])
    return Layout.of(model)


ENCODER = recipes.default(density=0.02)
app = ClientApp(mods=[compress(ENCODER)])
told = ClientApp(mods=[compress(ENCODER, layout=lambda context: layout_of(context.run_config))])


@app.train()
@told.train()
def train(message: Message, context: Context) -> Message:
    kind = str(context.run_config["kind"])
    model = load(kind, message.content["arrays"])
    images, labels = examples(
        kind, int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    )
    config = message.content["config"]
    rate = float(config.get("lr", 0.1))
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_of = nn.functional.binary_cross_entropy_with_logits if kind == "tabular" else nn.functional.cross_entropy
    torch.manual_seed(1)
    model.train()
    for batch in torch.randperm(len(labels)).split(32):
        loss = loss_of(model(images[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= rate * gradient
    arrays = arrays_of(kind, model)
    if kind == "logistic":  # as scikit-learn answers, whose solver works in the precision of the data
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    metrics = MetricRecord(
        {"train_loss": loss.item(), "lr": rate, "num-examples": len(labels), "per_class": [0.25, 0.5]}
    )
    return Message(RecordDict({"arrays": record(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
@told.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the model, too, as some of the examples do, and with a confusion matrix."""
    kind = str(context.run_config["kind"])
    model = load(kind, message.content["arrays"])
    metrics = MetricRecord({"eval_acc": accuracy(kind, model), "num-examples": 10})
    confusion = ArrayRecord({"confusion": Array(np.eye(10))})
    content = {"arrays": message.content["arrays"], "metrics": metrics, "confusion": confusion}
    return Message(RecordDict(content), reply_to=message)


def accuracy(kind: str, model: nn.Module) -> float:
    images, labels = examples(kind, None, 1)
    model.eval()
    with torch.no_grad():
        out = model(images)
    right = (out > 0).float() == labels if kind == "tabular" else out.argmax(dim=1) == labels
    return float(right.float().mean())
