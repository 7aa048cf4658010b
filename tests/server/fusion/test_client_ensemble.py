"""Client models are what the mean was taken of; they teach; a global model refined by them is a step like others."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.client.settings import Training
from fedpress.client.training import train
from fedpress.compression.encoders import encoder, selection
from fedpress.compression.messages import records
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.loss import distillation_loss
from fedpress.compression.models.task import evaluate
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.server.checkpoint import state
from fedpress.server.checkpoint.checkpoint_folder import CheckpointFolder
from fedpress.server.fusion.client_ensemble import ClientModels, Fusion, LastUpdates, SentUpdate, filled
from fedpress.server.fusion.settings import FedDF
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.aggregate import LARGEST, ReplyMean
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid
from fedpress.simulations.tasks.digits import Digits

DRAW = np.random.default_rng(0)


def global_model(downlink: Downlink | None = None) -> GlobalModel:
    arrays = {
        "weight": DRAW.normal(size=(4, 16)).astype(np.float32),
        "norm.running_mean": np.zeros(4, np.float32),
        "norm.num_batches_tracked": np.array(5, np.int64),
    }
    return GlobalModel(records.from_numpy(arrays), None, optimizers.sgd(1.0), downlink)


def buffers_of(model: GlobalModel, mean: float) -> bytes:
    arrays = {"norm.running_mean": np.full(4, mean, np.float32), "norm.num_batches_tracked": np.array(6, np.int64)}
    return buffer_codec.pack(arrays, model.layout)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.sampled_from([0.1, 1.0]), st.booleans(), st.integers(0, 99))
def test_the_mean_of_the_client_models_is_the_step(clients: int, density: float, down: bool, seed: int) -> None:
    model, draw = global_model(Downlink(0.2) if down else None), np.random.default_rng(seed)
    codec = encoder.sparse(selection.top_k(density), values.INT8)
    sent, mean = [], ReplyMean(model.layout)
    for node in range(clients):
        update = draw.normal(size=model.layout.size).astype(np.float32)
        payload, *_ = codec.encode(update, codec.init(model.layout), SideInfo(model.layout), node)
        sent.append(SentUpdate(payload, buffers_of(model, node), None, model.version))
        mean.add(payload, sent[-1].buffers, 1.0, SideInfo(model.layout))
    kept = ClientModels()
    kept.attach(model)
    kept.take(sent)
    before = records.to_numpy(model.arrays)["weight"]
    step, buffers = mean.result(model.buffers)
    model.step(step.copy(), buffers)  # which the client models do not follow

    found = list(kept)
    assert len(kept) == len(found) == clients
    average = np.mean([arrays["weight"] for arrays in found], axis=0)
    np.testing.assert_allclose(average - before, step.reshape(4, 16), atol=1e-5)
    assert [float(arrays["norm.running_mean"][0]) for arrays in found] == list(range(clients))
    again = ClientModels()
    again.attach(model)
    state.restore(again, state.unpack(state.pack({"clients": kept.state()})), "clients")
    for one, other in zip(found, again, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_client_models_need_a_global_one() -> None:
    with pytest.raises(RuntimeError, match="give it to a SparseFed"):
        ClientModels().take([])


def test_a_fusion_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion needs proxy data, got 0 inputs"):
        Fusion(nn.Linear(2, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="every: got .*, expected greater than or equal to 1"):
        FedDF(every=0)


def test_a_fusion_every_so_many_rounds_begins_with_the_first() -> None:
    fusion = Fusion(nn.Linear(2, 2), torch.zeros(1, 2), FedDF(every=3))
    assert [number for number in range(1, 9) if fusion.due(number)] == [1, 4, 7]


@pytest.fixture(scope="module")
def digits_round() -> tuple[GlobalModel, ClientModels, nn.Module]:
    """One round on digits: three clients with few digits each, from a model that all of them trained for a moment."""
    torch.manual_seed(0)
    task, rule = Digits(), Training(epochs=2, batch_size=32, learning_rate=0.1)
    start, examples = task.model(), task.data().train
    train.train(start, examples, task.loss, rule, seed=0)
    named = {name: tensor.numpy().copy() for name, tensor in start.state_dict().items()}
    model = GlobalModel(records.from_numpy(named), None, optimizers.sgd(1.0))
    codec, sent, mean = encoder.dense(values.FLOAT32), [], ReplyMean(model.layout)
    for node, digits in enumerate(([0, 1, 2, 3], [4, 5, 6], [7, 8, 9])):
        own = examples.take(torch.isin(examples.targets, torch.tensor(digits)).nonzero().flatten())
        client = copy.deepcopy(start)
        train.train(client, own, task.loss, rule, seed=node)
        trained = flatten.flatten({n: t.numpy() for n, t in client.state_dict().items()}, model.layout)
        payload, *_ = codec.encode(trained - model.master, None, SideInfo(model.layout), 0)
        sent.append(SentUpdate(payload, b"", None, model.version))
        mean.add(payload, b"", 1.0, SideInfo(model.layout))
    clients = ClientModels()
    clients.attach(model)
    clients.take(sent)
    model.step(*mean.result(model.buffers))
    return model, clients, filled(task.model(), records.to_numpy(model.arrays))


def test_a_fused_model_answers_more_like_its_clients(
    digits_round: tuple[GlobalModel, ClientModels, nn.Module],
) -> None:
    _, clients, mean = digits_round
    task = Digits()
    test = task.data().test
    fusion = Fusion(mean, task.data().proxy.inputs, FedDF(epochs=10, learning_rate=1e-3, temperature=1.0))
    before = {name: tensor.clone() for name, tensor in mean.state_dict().items()}
    arrays = {name: tensor.numpy() for name, tensor in before.items()}
    fused, again = (fusion.fused(arrays, clients, 1) for _ in range(2))
    assert all(np.array_equal(fused[name], again[name]) for name in fused)
    assert all(torch.equal(before[name], tensor) for name, tensor in mean.state_dict().items())
    refined = filled(copy.deepcopy(mean), fused)
    expected = clients.teacher(mean).answers(test.inputs)
    losses = [
        float(distillation_loss(teachers.logits(model, test.inputs), expected, temperature=1.0))
        for model in (mean, refined)
    ]
    assert losses[1] < 0.7 * losses[0]
    assert evaluate(refined, task, test).accuracy > 0.5


def hostile_update(model: GlobalModel) -> SentUpdate:
    """Return an update within all bounds: next to nothing in the mean, if it claims few examples."""
    update = np.full(model.layout.size, LARGEST, np.float32)
    update[::2] = -LARGEST
    payload, *_ = encoder.dense(values.FLOAT32).encode(update, None, SideInfo(model.layout), 0)
    return SentUpdate(payload, b"", None, model.version, node=666)


def test_a_client_whose_model_gives_no_finite_answers_does_not_teach(
    digits_round: tuple[GlobalModel, ClientModels, nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model, clients, mean = digits_round
    inputs = 1e10 * Digits().data().proxy.inputs[:50]  # as if there were more layers, each with such weights
    alone = clients.teacher(mean).answers(inputs)
    joined = ClientModels()
    joined.attach(model)
    joined.restore(LastUpdates(clients.state().held, [*clients.state().sent, hostile_update(model)]))
    useless = ~torch.isfinite(teachers.logits(filled(copy.deepcopy(mean), list(joined)[-1]), inputs)).all(dim=1)
    assert useless.any()
    logging.getLogger("flwr").addHandler(caplog.handler)
    torch.testing.assert_close(joined.teacher(mean).answers(inputs)[useless], alone[useless])
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "the model of node 666 of an ensemble" in caplog.text


# ---- in the loop -----------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """What the clients of `faulty_client` train, as a torch model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.zeros(64)), nn.Module()
        self.norm.register_buffer("running_mean", torch.zeros(4))
        self.norm.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.view(16, 4)


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


def run(
    states: Path, kill: int = 0, fusion: bool = True, scale: float = 1.0, **more: Any
) -> tuple[SparseFed, ArrayRecord]:
    inputs = scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    weight = np.random.default_rng(1).normal(0, 0.1, 64).astype(np.float32)
    initial = {
        "weight": weight, "norm.running_mean": np.zeros(4, np.float32), "norm.num_batches_tracked": np.array(5),
    }  # fmt: skip

    def on_round(summary: Any) -> None:
        if summary.round == kill:
            raise Killed

    strategy = SparseFed(
        fraction_evaluate=0.0,
        optimizer=optimizers.sgd(1.0, 0.5),
        downlink=Downlink(0.3),
        clients=ClientModels(),
        fusion=Fusion(Tiny(), inputs, FedDF(epochs=2, learning_rate=3e-3, every=2)) if fusion else None,
        on_round=on_round,
        **more,
    )
    with InlineGrid("tests.apps.faulty_client:app", clients=3, workers=1, states=states) as grid:
        return strategy, strategy.start(grid, records.from_numpy(initial), num_rounds=4).arrays


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.0, 1.0], ids=["journal", "checkpoints"])
def test_a_run_that_fuses_goes_on_to_the_same_end_and_nobody_loses_the_model(tmp_path: Path, budget: float) -> None:
    undisturbed, arrays = run(tmp_path / "a")
    for kill in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / "b", kill, checkpoints=CheckpointFolder(tmp_path / "checkpoints", budget=budget))
    # The server trains in rounds 1 and 3, which a journal cannot repeat.
    resumed, ended = run(tmp_path / "b", checkpoints=CheckpointFolder(tmp_path / "checkpoints", budget=budget))
    assert CheckpointFolder(tmp_path / "checkpoints").rounds() == ([2, 3, 4] if budget else [1, 3])
    assert ended == arrays
    np.testing.assert_array_equal(resumed.model.master, undisturbed.model.master)
    before, after = undisturbed.federation.clients, resumed.federation.clients
    assert before is not None and after is not None
    for one, other in zip(before, after, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    # The held model has followed by deltas that every client could use: nobody was refused or began anew.
    assert undisturbed.refusals == [] and undisturbed.model.version == 4
    plain, _ = run(tmp_path / "c", fusion=False)
    assert not np.array_equal(plain.model.master, undisturbed.model.master)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [math.nan, 1e38])
def test_a_distillation_that_fails_leaves_the_mean_as_it_is(tmp_path: Path, scale: float) -> None:
    failed, _ = run(tmp_path / "a", scale=scale)
    plain, _ = run(tmp_path / "b", fusion=False)
    np.testing.assert_array_equal(failed.model.master, plain.model.master)
