"""A task with one thing wrong, or unusual, by its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models.task import Examples, Splits, Task
from fedpress.simulations.runs import checks, plan
from fedpress.simulations.runs.job import Job
from fedpress.simulations.scenario import scenario

SHORT = [
    "clients=4", "rounds=2", "sampling.clients_per_round=2", "workers=1", "training={epochs: 1, batch_size: 4}",
    "partition.kind=iid",
]  # fmt: skip


def write(folder: Path) -> Path:
    """Write a scenario of the task into a folder; return the folder."""
    (folder / "scenario.yaml").write_text("task: tests.apps.checked_task:Made\nclients: 4\nrounds: 2\n")
    return folder


def notes(folder: Path, *changes: str) -> list[str]:
    """Return the notes of the checks of the scenario in a folder, with overrides."""
    return checks.check(Job(scenario.load(folder, [*SHORT, *changes])), plan.plan).notes


class Block(nn.Module):
    """A head on six inputs, and whatever a test wants between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        if kind == "norm":
            self.norm = nn.BatchNorm1d(8)
        if kind == "no statistics":
            self.norm = nn.BatchNorm1d(8, track_running_stats=False)
        if kind == "mask":
            self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))
        if kind == "shared":
            self.again = nn.Parameter(self.body.weight.data.t())
        if kind == "packed":  # columns of one matrix, none of them twice
            whole = torch.randn(8, 12)
            self.left, self.right = nn.Parameter(whole[:, ::2]), nn.Parameter(whole[:, 1::2])
        if kind == "listed":
            self.layers = [nn.Linear(8, 8)]
        if kind == "copies":
            self.copies = [parameter.detach().clone().requires_grad_() for parameter in self.head.parameters()]
        if kind == "idle":
            self.idle = nn.Parameter(torch.ones(2))
        if kind == "infinite":
            self.body.bias.data[3] = float("inf")

    def forward(self, inputs: Tensor) -> Any:
        if self.kind == "fills in":
            inputs = torch.nan_to_num(inputs)
        hidden = self.body(inputs).relu()
        if self.kind == "shared":
            hidden = hidden + (inputs @ self.again).relu()
        if self.kind == "packed":
            hidden = hidden + (inputs @ self.left.t() * (inputs @ self.right.t())).relu()
        if self.kind == "listed":
            hidden = self.layers[0](hidden)
        if self.kind == "copies":
            return nn.functional.linear(hidden.detach(), *self.copies)
        if self.kind == "softmax":
            return self.head(hidden).softmax(1)
        if "norm" in self.kind or self.kind == "no statistics":
            hidden = self.norm(hidden)
        if self.kind == "dropout":
            hidden = nn.functional.dropout(hidden)
        if self.kind == "numpy":
            hidden = torch.from_numpy(hidden.detach().numpy())
            return hidden[:, :3]
        if self.kind == "root":
            return self.head(hidden) * (hidden.sum(1, keepdim=True) * 0).sqrt()
        return self.head(hidden)


class Looked(nn.Module):
    """A table of words with sparse gradients; the words are made of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True)

    def forward(self, inputs: Tensor) -> Any:
        return self.table(inputs.abs().long().clamp(max=4)).mean(1)


class Made(Task):
    name = "made"

    def __init__(
        self,
        model: str = "plain",
        labels: str = "whole",
        inputs: str = "whole",
        loss: str = "default",
        count: int = 40,
        data: str = "seeded",
    ) -> None:
        self.kind, self.labels, self.inputs, self.own, self.count, self.draw = model, labels, inputs, loss, count, data

    def model(self) -> Any:
        if self.kind == "lazy":
            return nn.Sequential(nn.LazyLinear(3))
        if self.kind == "meta":
            with torch.device("meta"):
                return Block("plain")
        if self.kind == "scripted":
            return torch.jit.script(nn.Linear(6, 3))
        if self.kind == "sparse":
            return Looked()
        if self.kind == "raises":
            raise KeyError("no such width")
        if self.kind == "other":
            return "a model"
        return Block(self.kind)

    def data(self) -> Any:
        if self.draw == "raises":
            return open("/nowhere/at/all")
        if self.draw == "numpy":
            return tuple((self.part(seed).inputs, np.zeros(40)) for seed in range(4))
        return Splits(self.part(1, self.count), self.part(2), self.part(3), self.part(4))

    def part(self, seed: int | None, count: int = 40) -> Examples:
        if self.draw == "drawn":
            seed = None
        if self.draw == "global":
            seed = int(torch.randint(1000, (1,)))
        draw = np.random.default_rng(seed)
        inputs = torch.from_numpy(draw.normal(size=(count, 6)).astype(np.float32))
        targets = torch.from_numpy(draw.integers(0, 3, count))
        if self.labels == "from one":
            targets = targets + 1
        if self.labels == "below zero":
            targets[5] = -1
        if self.labels == "some ignored":
            targets[::2] = -100
        if self.labels == "all ignored":
            targets[:] = -100
        if self.labels == "fractions":
            targets = inputs[:, 0].clone()
        if self.labels == "strings":
            return Examples(inputs, ["a", "b"] * (count // 2))  # type: ignore[arg-type]
        if self.labels == "column":
            targets = targets[:, None]
        if self.labels == "one-hot":
            targets = nn.functional.one_hot(targets, 3)
        if self.labels == "several":
            targets = (inputs[:, :3] > 0).float()
        if self.labels == "narrow":
            targets = targets.int()
        if self.labels == "floats":
            targets = targets.float()
        if self.labels == "NaN":
            targets = inputs[:, 0].clone()
            targets[7] = float("nan")
        if self.inputs == "NaN":
            inputs[11, 2] = float("nan")
        if self.inputs == "double":
            inputs = inputs.double()
        if self.inputs == "narrow":
            inputs = inputs[:, :5]
        return Examples(inputs, targets)

    def loss(self, outputs: Any, targets: Tensor) -> Any:
        if self.own == "default":
            return super().loss(outputs, targets)
        if self.own == "from one":
            return nn.functional.cross_entropy(outputs, targets - 1)
        if self.own == "regression":
            return (outputs[:, 0] - targets).square().mean()
        if self.own == "of each":
            return nn.functional.cross_entropy(outputs, targets, reduction="none")
        if self.own == "infinite":
            return outputs.sum() * float("inf")

    def correct(self, outputs: Any, targets: Tensor) -> Any:
        if self.own == "regression":
            return (outputs[:, 0] - targets).abs() < 0.5
        return super().correct(outputs, targets - 1 if self.own == "from one" else targets)


class Plain(Made):
    """The same with the loss that tasks have by default."""

    loss, correct = Task.loss, Task.correct
