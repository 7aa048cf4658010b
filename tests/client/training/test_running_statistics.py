"""Batch-normalized models: statistics that fit the weights, from the first rounds on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedpress
from fedpress.client import mod
from fedpress.client.training import running_statistics
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.messages import orders, records
from fedpress.compression.models import batch_norm
from fedpress.compression.models.task import evaluate
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.wire import values
from fedpress.server.strategies.sparse_fed import SparseFed
from fedpress.simulations.engines.inline import InlineGrid
from fedpress.simulations.tasks.digits import Digits

APPS = Path(__file__).parents[2] / "apps"


def arrays(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@settings(deadline=None, max_examples=20)
@given(
    momentum=st.sampled_from([None, 0.01, 0.1, 0.3]),
    batches=st.integers(1, 8),
    before=st.integers(0, 1000),
    mean=st.floats(-100, 100),
    variance=st.floats(0, 1000),
)
def test_nothing_of_the_received_statistics_is_left(
    momentum: float | None, batches: int, before: int, mean: float, variance: float
) -> None:
    """The law: the result is the same, whatever came with the model."""

    def trained(mean: float, variance: float) -> dict[str, Any]:
        torch.manual_seed(batches)
        model = nn.Sequential(nn.BatchNorm1d(2, momentum=momentum)).double()
        model[0].running_mean.fill_(mean)
        model[0].running_var.fill_(variance)
        model[0].num_batches_tracked.fill_(before)
        received = arrays(model)
        for _ in range(batches):
            model(3 + 2 * torch.randn(16, 2, dtype=torch.float64))
        layout = Layout.of(model)
        assert layout.norm_momenta == (("0", momentum),)
        return {**arrays(model), **running_statistics.of_training(received, arrays(model), layout)}

    result, other = trained(mean, variance), trained(0.0, 0.0)
    for name in ("0.running_mean", "0.running_var"):
        np.testing.assert_allclose(result[name], other[name], rtol=1e-6, atol=1e-6)
        assert (np.abs(other[name] - {"0.running_mean": 3, "0.running_var": 4}[name]) < 4).all()


def test_what_did_not_start_from_the_received_stays_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    layout, received = Layout.of(model), arrays(model)
    assert running_statistics.of_training(received, received, layout) == {}  # no batch
    trained = {**received, "0.running_var": np.float32([0.01]), "0.num_batches_tracked": np.array(1)}
    assert running_statistics.of_training(received, trained, layout) == {}  # one batch cannot take 1 to 0.01
    guessed = Layout.of_arrays(received)  # the momentum is not known
    assert running_statistics.of_training(received, {**trained, "0.running_var": np.float32([0.95])}, guessed) == {}
    keras = Layout.of_arrays({"moving_mean": np.zeros(3, np.float32)})
    assert running_statistics.of_training({}, {}, keras) == {}


def test_the_mod_sends_the_statistics_of_the_received_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the model that training starts from, which the encoder may have shifted."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    inputs, seen = torch.tensor([[1.0], [3.0]]), []

    def statistics(context: Context, received: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(float(received["0.weight"][0, 0]))
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in received.items()})
        return batch_norm.measure(model, inputs)

    def training(message: Message, _: Context) -> Message:
        trained = records.to_numpy(message.content["arrays"])
        trained |= {"0.weight": trained["0.weight"] + 10, "1.running_mean": trained["1.running_mean"] + 100}
        return Message(RecordDict({"arrays": records.from_numpy(trained)}), reply_to=message)

    ahead = error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(0.5), values.FLOAT32))
    )
    applied = mod.compress(ahead, layout=Layout.of(model), statistics=statistics)
    here = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    held = {**arrays(model), "0.weight": np.float32([[5.0]])}
    for ticket in (1, 2):
        order = orders.Order("test", ticket, round=ticket, mask_version=0, version=ticket - 1, accepted=ticket - 1)
        content = {"arrays": records.from_numpy(held), "config": ConfigRecord(dict(orders.write_order(order)))}
        reply = applied(Message(RecordDict(content), dst_node_id=1, message_type="train"), here, training)
        layout = Layout.of(model)
        given = buffer_codec.pack(held, layout)
        sent = buffer_codec.unpack(
            buffer_codec.unpack_changes(orders.read_answer(reply.content).buffers, given, layout), layout
        )
        assert sent["1.running_mean"] == pytest.approx([10.0])  # the mean of 5 * 1 and 5 * 3
    assert seen == [5.0, 5.0]


def re_estimated(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    measured = {name: torch.from_numpy(array) for name, array in batch_norm.measure(model, inputs).items()}
    model.load_state_dict({**model.state_dict(), **measured})
    return model


@pytest.mark.long
@pytest.mark.parametrize("feedback", ["residual", "step_ahead"])
def test_in_round_8_statistics_are_within_3_points_of_re_estimated_ones(feedback: str, tmp_path: Path) -> None:
    training = {"batch_size": 64, "learning_rate": 0.1, "epochs": 2}
    keys = {"task.model": "cnn-bn", "students": {"tiers": []}, "training": training}
    encoder = {"kind": "top_k", "values": "step", "feedback": feedback}
    server = {"learning_rate": 1.0, "momentum": 0.0}
    result = fedpress.simulate(
        "digits", out=tmp_path / "run", progress=False, rounds=8, encoder=encoder, server=server, **keys
    )
    task = Digits("cnn-bn")
    parts, model = task.data(), task.model()
    model.load_state_dict(result.model)
    accuracy = evaluate(model, task, parts.test).accuracy
    best = evaluate(re_estimated(model, parts.proxy.inputs), task, parts.test).accuracy
    assert best > 0.5
    assert accuracy > best - 0.03


def test_the_network_is_that_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    import resnet18

    model = resnet18.resnet18(1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
    assert len(Layout.of(model).norm_momenta) == 20


@pytest.mark.long
@pytest.mark.parametrize("app", ["plain", "measuring"])
def test_a_resnet_18_is_right_from_the_first_rounds(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    import resnet18

    torch.manual_seed(0)
    model = resnet18.resnet18(resnet18.CLASSES)
    inputs, labels = resnet18.images(99, 256)

    def right() -> float:
        with torch.no_grad():
            return float((model.eval()(inputs).argmax(dim=1) == labels).float().mean())

    strategy = SparseFed(fraction_train=1.0, fraction_evaluate=0.0, layout=Layout.of(model))
    with InlineGrid(f"resnet18:{app}", clients=resnet18.CLIENTS, workers=2) as grid:
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=8)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    accuracy = right()
    re_estimated(model, resnet18.images(98, 256)[0])
    assert right() > 0.6
    assert accuracy > right() - (0.03 if app == "measuring" else 0.1)
