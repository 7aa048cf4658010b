"""The log of a run in an app: what FedAvg shows is there, the bytes are those of the ledger, and the table adds up."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result
from tests.apps.local_grid import LocalGrid

from fedpress import Downlink, SparseFed, compress
from fedpress.compression.encoders import recipes
from fedpress.compression.messages import records
from fedpress.server.strategies import console
from fedpress.server.strategies.console import Traffic

plain, two_lines = ClientApp(), ClientApp(mods=[compress(recipes.default(density=0.01))])


@plain.train()
@two_lines.train()
def train(message: Message, context: Context) -> Message:
    arrays = {name: array.numpy() + np.float32(0.5) for name, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": 3, "train_loss": 0.25})
    return Message(RecordDict({"arrays": records.from_numpy(arrays), "metrics": metrics}), reply_to=message)


@plain.evaluate()
@two_lines.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"m": MetricRecord({"num-examples": 3, "eval_acc": 0.75})}), reply_to=message)


def arrays() -> ArrayRecord:
    return records.from_numpy({"weight": np.linspace(-1, 1, 60000, dtype=np.float32).reshape(300, 200)})


def on_server(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": 0.5, "loss": 1.5})


def test_what_fedavg_logs_is_logged_and_a_closing_table(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    FedAvg().start(LocalGrid(plain), arrays(), 2, evaluate_fn=on_server)
    flower = [line.strip(" \t├─└>│") for line in caplog.messages]
    caplog.clear()
    strategy, grid = SparseFed(downlink=Downlink(density=0.01)), LocalGrid(two_lines)
    strategy.start(grid, arrays(), 2, evaluate_fn=on_server)
    ours = [line.strip(" \t├─└>│") for line in caplog.messages]
    for line in (
        "Number of rounds: 2", "ArrayRecord (0.23 MB)", "[ROUND 1/2]", "[ROUND 2/2]", "Global evaluation",
        "Final results:",
        "MetricRecord: {'accuracy': 0.5, 'loss': 1.5}", "Aggregated MetricRecord: {'eval_acc': 0.75}",
        "configure_train: Sampled 3 nodes (out of 3)",
        "Initial global evaluation results: {'accuracy': 0.5, 'loss': 1.5}",
    ):  # fmt: skip
        assert line in flower and line in ours, line
    assert any(line.startswith("Aggregated MetricRecord: {'train_loss': 0.25") for line in ours)
    for line in (
        "training on clients, round 2: train_loss 0.25",
        "evaluation on clients, round 2: eval_acc 0.75",
        "evaluation on the server, round 2: accuracy 0.5, loss 1.5",
        "6 replies counted, 0 were refused",
    ):
        assert line in ours, line
    traffic = Traffic.of([strategy.federation])
    assert (traffic.up, traffic.down) == (grid.passed["up"], grid.passed["down"])
    (up,) = [line for line in ours if line.startswith("up ")]
    assert up.endswith(f"{traffic.dense_up / traffic.up:,.1f}x less than dense")


def test_the_dense_method_of_the_table_is_what_fedavg_sends() -> None:
    flower = LocalGrid(plain)
    FedAvg().start(flower, arrays(), 3)
    strategy = SparseFed()
    strategy.start(LocalGrid(two_lines), arrays(), 3)
    traffic = Traffic.of([strategy.federation])
    assert traffic.dense_up == pytest.approx(flower.passed["up"], rel=1e-3)
    assert traffic.dense_down == pytest.approx(flower.passed["down"], rel=1e-3)


def test_the_table_compares_both_directions_and_leaves_the_counters_out() -> None:
    result = Result(train_metrics_clientapp={3: MetricRecord({"loss": 0.5, "fedpress.replies": 7, "replies": 7})})
    lines = console.table(result, Traffic(1000, 4000, 300_000, 2000), 7, 1)
    assert [line.split() for line in lines[1:4]] == [
        ["up", "1.00", "kB", "300", "kB", "300.0x", "less", "than", "dense"],
        ["down", "4.00", "kB", "2.00", "kB", "2.0x", "more", "than", "dense"],
        ["both", "5.00", "kB", "302", "kB", "60.4x", "less", "than", "dense"],
    ]
    assert lines[4:] == ["7 replies counted, 1 were refused", "training on clients, round 3: loss 0.5"]
    assert Traffic(0, 0, 0, 0).ratio is None


@pytest.mark.parametrize(("traffic", "pays"), [(Traffic(10, 10, 100, 100), True), (Traffic(90, 90, 100, 100), False)])
def test_a_run_in_which_compression_does_not_pay_says_so(
    traffic: Traffic, pays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    console.finished(Result(), traffic, 1.0, 3, 0)
    assert ("compression does not pay" in caplog.text) is not pays
