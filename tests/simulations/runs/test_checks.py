"""What would fail in a round is an error before the first one; what can be trained stays allowed."""

from pathlib import Path

import pytest
import torch

from fedpress.compression.errors import FedpressError
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import checks, launch, plan
from fedpress.simulations.runs.job import Job
from fedpress.simulations.runs.workload import OtherData, Workload
from fedpress.simulations.scenario import scenario

TASK = '''
import numpy as np
import torch
from torch import nn
from fedpress.compression.models.task import Examples, Splits, Task

class Block(nn.Module):
    """A head on six inputs, and whatever a test wants between."""

    def __init__(self, kind):
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
        if kind == "idle":
            self.idle = nn.Parameter(torch.ones(2))
        if kind == "infinite":
            self.body.bias.data[3] = float("inf")

    def forward(self, inputs):
        if self.kind == "fills in":
            inputs = torch.nan_to_num(inputs)
        hidden = self.body(inputs).relu()
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

class Made(Task):
    name = "made"
    calls = 0

    def __init__(self, model="plain", labels="whole", inputs="whole", loss="default", count=40, data="seeded"):
        self.kind, self.labels, self.inputs, self.own, self.count, self.draw = model, labels, inputs, loss, count, data

    def model(self):
        if self.kind == "lazy":
            return nn.Sequential(nn.LazyLinear(3))
        if self.kind == "raises":
            raise KeyError("no such width")
        if self.kind == "other":
            return "a model"
        return Block(self.kind)

    def data(self):
        if self.draw == "raises":
            return open("/nowhere/at/all")
        if self.draw == "numpy":
            return tuple(self.part(seed)._replace(targets=np.zeros(40)) for seed in range(4))
        return Splits(self.part(1, self.count), self.part(2), self.part(3), self.part(4))

    def part(self, seed, count=40):
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

    def loss(self, outputs, targets):
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

    def correct(self, outputs, targets):
        if self.own == "regression":
            return (outputs[:, 0] - targets).abs() < 0.5
        return super().correct(outputs, targets - 1 if self.own == "from one" else targets)
'''

SHORT = [
    "clients=4", "rounds=2", "sampling.clients_per_round=2", "workers=1", "training={epochs: 1, batch_size: 4}",
    "partition.kind=iid",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "scenario.yaml").write_text("task: task:Made\nclients: 4\nrounds: 2\n")
    return tmp_path


def notes(folder: Path, *changes: str) -> list[str]:
    return checks.check(Job(scenario.load(folder, [*SHORT, *changes])), plan.plan).notes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.labels=from one"], "part 'train': 1 label (3) outside the model's 3 outputs"),
        (["task.labels=from one"], "expected 0 to 2, or -100 where there is none; do labels begin at 1?"),
        (["task.labels=below zero"], "part 'train': 1 label (-1) outside the model's 3 outputs, 1 target(s)"),
        (["task.labels=all ignored"], "part 'train': no example has a target, all are -100"),
        (["task.labels=floats"], "targets float32 of shape (40,)"),
        (["task.labels=floats"], "The cross-entropy takes whole numbers: targets.long()"),
        (
            ["task.labels=fractions", "task.loss=regression", "partition.kind=dirichlet"],
            "goes by labels, but the targets",
        ),
        (["task.labels=NaN", "task.loss=regression"], "part 'train': the target of example 7 is NaN"),
        (["task.inputs=NaN"], "part 'train': 1 of 40 inputs hold NaN or infinity, the first is example 11"),
        (["task.inputs=double"], "Should the inputs be float32, too? They are float64: inputs.float()"),
        (["task.inputs=narrow"], "the model cannot take inputs of part 'train', float32 of shape (2, 5)"),
        (["task.loss=of each"], "the loss returned float32 of shape"),
        (["task.loss=infinite"], "part 'train': the loss of the initial model is"),
        (["task.data=raises"], "data() raised FileNotFoundError"),
        (["task.data=numpy"], "data() returned a tuple, expected Splits"),
        (["task.data=drawn"], "data() returns other examples at every call"),
        (["task.data=global"], "data() returns other examples at every call"),
        (["task.model=lazy"], "parameter '0.weight' has no shape yet"),
        (["task.model=raises"], "model() raised KeyError: 'no such width' (task.py, line"),
        (["task.model=other"], "model() returned a str"),
        (["task.model=infinite"], "parameter 'body.bias' of the initial model holds NaN or infinity"),
        (["task.model=numpy"], "the loss does not depend on any parameter"),
        (["task.model=root"], "gradient of parameter"),
        (["task.model=norm", "training.batch_size=1"], "training.batch_size: with 1, layer 'norm' (BatchNorm1d)"),
        (["task.model=dropout"], "does not answer the same inputs twice alike: does it call functional.dropout"),
        (["task.model=mask", "students.tiers=[{name: phone, parameters: 0.9}]"], "infinity in buffer 'mask'"),
        (["students.tiers=[{name: phone, parameters: 1}]"], "a student within 1 parameters is impossible"),
        (["faults.lost=1.0"], "faults.lost: with a chance of 1"),
        (["network=lora-like", "sampling.deadline=0.01"], "sampling.deadline: got 0.01 s, but no client"),
    ],
)  # fmt: skip
def test_what_would_fail_is_an_error_that_names_the_part(folder: Path, changes: list[str], expected: str) -> None:
    with pytest.raises(FedpressError) as raised:
        notes(folder, *changes)
    assert expected in str(raised.value) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], None),
        (["task.labels=some ignored"], None),
        (["task.labels=from one", "task.loss=from one"], None),  # the task's own loss knows better
        (["task.labels=fractions", "task.loss=regression"], None),
        (["task.labels=floats", "task.loss=regression", "partition.kind=dirichlet"], None),  # labels all the same
        (["task.model=mask"], None),
        (["task.model=fills in", "task.inputs=NaN"], "1 inputs hold NaN or infinity; the model takes them"),
        (["task.model=idle"], "1 parameter (idle) without a gradient"),
        (["task.model=norm", "training.batch_size=3"], "4 clients (0, 1, 2, 3) whose last batch of one example joins"),
        (["task.model=norm", "clients=40"], "40 clients (0, 1, 2, 3, 4, ...) with one example: there layer 'norm'"),
    ],
)  # fmt: skip
def test_what_can_be_trained_is_allowed_and_the_unusual_is_noted(
    folder: Path, changes: list[str], expected: str | None
) -> None:
    found = notes(folder, *changes)
    assert found == [] if expected is None else expected in " ".join(found)


def test_the_generators_and_modes_of_this_process_stay_as_they_were(folder: Path) -> None:
    torch.manual_seed(3)
    before, debug = torch.get_rng_state(), torch.get_deterministic_debug_mode()
    with pytest.raises(FedpressError):
        notes(folder, "task.model=dropout")  # which draws in evaluation mode, too
    assert torch.equal(torch.get_rng_state(), before) and torch.get_deterministic_debug_mode() == debug


def test_no_run_folder_is_left_of_a_run_that_cannot_be(folder: Path) -> None:
    with pytest.raises(checks.CheckError):
        launch.launch(scenario.load(folder, [*SHORT, "task.labels=from one"]), out=folder / "run")
    assert not (folder / "run").exists()
    chosen = scenario.load(folder, [*SHORT, "task.labels=from one"])
    with pytest.raises(checks.CheckError):  # as the ServerApp of a deployment
        plan.load({"scenario": chosen.to_json(), "out": str(folder / "run")})
    assert not (folder / "run").exists()


def test_a_process_with_other_data_than_the_server_says_so(folder: Path) -> None:
    server = Workload(scenario.load(folder, SHORT))
    run = RunFolder.create(folder / "run")
    server.save_parts(run)
    same = Workload(scenario.load(folder, SHORT), run.path)
    assert len(same.examples(0).targets) == 10
    other = Workload(scenario.load(folder, [*SHORT, "task.data=drawn"]), run.path)
    with pytest.raises(OtherData, match="are not those that the server has"):
        other.examples(0)


NAMED = """
import torch
from tests.apps.texts import Texts
from fedpress.compression.models.task import Examples

class Spoiled(Texts):
    name = "spoiled"

    def __init__(self, kind="plain", spoil="none"):
        super().__init__(kind, "memory" if spoil != "drawn" else "lists")
        self.spoil = spoil

    def _part(self, name, count, seed):
        inputs, targets = super()._part(name, count, seed)
        if self.spoil == "empty":
            inputs = {}
        if self.spoil == "short":
            inputs["mask"] = inputs["mask"][:7]
        if self.spoil == "labels":
            inputs["labels"] = targets
        if self.spoil == "misspelled":
            inputs["masks"] = inputs.pop("mask")
        if self.spoil == "NaN":
            inputs = {"ids": inputs["ids"], "mask": inputs["mask"].float()}
            inputs["mask"][3, 1] = float("nan")
        if self.spoil == "cut":
            targets = targets[:7]
        if self.spoil == "drawn":
            inputs = Drawn(len(targets))
        return Examples(inputs, targets)

class Drawn:
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def take(self, rows):
        return {"ids": torch.randint(1, 40, (len(rows), 5)), "mask": torch.ones(len(rows), 5).long()}
"""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("spoil: empty", "part 'train': inputs: got an empty mapping"),
        ("spoil: short", "'mask' has 7 rows, expected as many of each"),
        ("spoil: labels", "'labels' is among the inputs; labels are no inputs, but targets"),
        ("spoil: misspelled", "'masks' is no argument of Pooled.forward, which takes ids, mask; did you mean 'mask'"),
        ("spoil: cut", "part 'train': 240 inputs but 7 targets"),
        ("spoil: drawn", "returns other tensors the second time"),
    ],
)
def test_inputs_by_name_that_would_fail_are_an_error(folder: Path, changes: str, expected: str) -> None:
    (folder / "named.py").write_text(NAMED)
    with pytest.raises(FedpressError) as raised:
        notes(folder, f"task={{name: 'named:Spoiled', {changes}}}")
    assert expected in str(raised.value) and raised.value.exit_code == 2


def test_padding_that_is_attended_to_is_an_error_and_inputs_by_name_are_none(folder: Path) -> None:
    with pytest.raises(FedpressError, match="padding is attended to"):
        notes(folder, "task={name: 'tests.apps.texts:Texts', kind: unmasked}")
    assert notes(folder, "task={name: 'tests.apps.texts:Texts'}") == []
    (folder / "named.py").write_text(NAMED)
    (note,) = notes(folder, "task={name: 'named:Spoiled', spoil: NaN}")[:1]
    assert note == "part 'train': 1 inputs hold NaN or infinity; the model takes them"
