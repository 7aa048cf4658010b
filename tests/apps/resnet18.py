"""ResNet-18 on random images as a Flower ClientApp, by the two lines alone and with statistics of the received model.

The network is that of torchvision (He et al. 2016, "Deep Residual Learning for Image Recognition", CVPR, table 1),
whose wheel on the index needs another build of torch than the CPU's.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedpress.client.mod import compress
from fedpress.compression.encoders import recipes
from fedpress.compression.models import batch_norm
from fedpress.compression.tensors.layout import Layout

CLIENTS, CLASSES = 4, 4


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images)))))
        return torch.relu(inner + self.downsample(images))


def resnet18(classes: int) -> nn.Module:
    stages = [
        nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))
        for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip


@cache
def images(part: int, count: int) -> tuple[Tensor, Tensor]:
    """A picture of noise for each class, under as much noise again: 32 x 32, with a mean far from zero."""
    classes = torch.randn(CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1 + part)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return 2 + classes[labels] + 2 * torch.randn(count, 3, 32, 32, generator=draw), labels


def app(*, measured: bool) -> ClientApp:
    def statistics(context: Context, arrays: Mapping[str, Any]) -> dict[str, Any]:
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
        return batch_norm.measure(model, images(context.node_config["partition-id"], 64)[0])

    model = resnet18(CLASSES)
    client = ClientApp(
        mods=[compress(recipes.default(0.01), layout=Layout.of(model), statistics=statistics if measured else None)]
    )

    @client.train()
    def train(message: Message, context: Context) -> Message:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        inputs, labels = images(context.node_config["partition-id"], 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        model.train()
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        metrics = MetricRecord({"train-loss": loss.item(), "num-examples": len(labels)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return client


plain, measuring = app(measured=False), app(measured=True)
