"""Headline: the two lines of the README in an app, against the same app with FedAvg: bytes and accuracy.

Ten clients, handwritten digits, a network of 301,066 weights: some minutes on two cores, nothing to download. The bytes
of FedAvg are those of its own messages, counted on the same engine. It needs what `pip install '.[simulation]'` brings.

    python records/two_lines.py
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits
from torch import nn

from fedpress import Downlink, SparseFed, compress
from fedpress.compression.encoders import recipes
from fedpress.compression.ledger import format_bytes
from fedpress.compression.messages import records
from fedpress.simulations.engines.inline import InlineGrid

CLIENTS, ROUNDS = 10, 50

plain = ClientApp()
two_lines = ClientApp(mods=[compress(recipes.default(density=0.01))])


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def load_data(client: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's images and labels; None: the 297 images for testing."""
    digits = load_digits()
    images = torch.from_numpy((digits.data / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    chosen = slice(1500, None) if client is None else slice(client, 1500, CLIENTS)
    return images[chosen], labels[chosen]


@plain.train()
@two_lines.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = load_data(int(context.node_config["partition-id"]))
    torch.manual_seed(int(message.content["config"]["server-round"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for batch in torch.randperm(len(labels)).split(16):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


class CountingGrid(InlineGrid):
    """Grid that counts the bytes of all messages that pass, whatever the strategy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.passed = {"up": 0, "down": 0}
        super().__init__(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.passed["down"] += sum(records.serialized_size(message) for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.passed["up"] += sum(records.serialized_size(reply) for reply in replies)
        return replies


def run(app: str, strategy: Any) -> tuple[float, int, int]:
    """Return the accuracy on the test images, and the bytes up and down."""
    with CountingGrid(f"two_lines:{app}", clients=CLIENTS, workers=2) as grid:
        result = strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=ROUNDS)
    model = make_model()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    images, labels = load_data(None)
    accuracy = float((model(images).argmax(dim=1) == labels).float().mean())
    return accuracy, grid.passed["up"], grid.passed["down"]


def main() -> None:
    """Run both apps and print a table."""
    dense = run("plain", FedAvg(fraction_evaluate=0.0))
    ours = run("two_lines", SparseFed(fraction_evaluate=0.0, downlink=Downlink(density=0.005)))
    print(f"{'':<12}{'accuracy':>9}{'up':>10}{'down':>10}{'both':>10}")
    for name, (accuracy, up, down) in (("FedAvg", dense), ("two lines", ours)):
        print(f"{name:<12}{accuracy:>9.1%}{format_bytes(up):>10}{format_bytes(down):>10}{format_bytes(up + down):>10}")
    ratios = (dense[1] / ours[1], dense[2] / ours[2], sum(dense[1:]) / sum(ours[1:]))
    print(f"{'times less':<12}{'':>9}" + "".join(f"{ratio:>10.1f}" for ratio in ratios))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
