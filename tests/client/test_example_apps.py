"""Apps as people bring them from Flower's examples, with the two lines: right results, or a word of what to do."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg, Result
from tests.apps import example_apps as apps
from tests.apps.local_grid import LocalGrid

from fedpress import Downlink, FedpressError, SparseFed, compress
from fedpress.compression.encoders import encoder, recipes
from fedpress.compression.errors import LayoutError
from fedpress.compression.tensors.layout import Layout
from fedpress.server.rounds.outcome import RunFailed


class Ran:
    """One run of an example: its strategy, result, model and grid."""

    def __init__(self, kind: str, rounds: int, *, told: bool = False, config: Any = None, **options: Any) -> None:
        self.kind = kind
        layout = apps.layout_of({"kind": kind}) if told else None
        self.strategy = SparseFed(layout=layout, downlink=Downlink(density=0.02), **options)
        self.grid = LocalGrid(apps.told if told else apps.app, 3, {"kind": kind})
        arrays = apps.record(apps.arrays_of(kind, apps.make_model(kind)))
        self.result = self.strategy.start(self.grid, arrays, num_rounds=rounds, train_config=config)
        self.arrays = {name: array.numpy() for name, array in self.result.arrays.items()}

    @property
    def accuracy(self) -> float:
        return apps.accuracy(self.kind, apps.load(self.kind, self.result.arrays))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("kind", ["torch", "keras"])
def test_statistics_are_averaged_whatever_the_framework_calls_them(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran(kind, 12)
    variance = next(name for name in ran.arrays if "var" in name)
    assert ran.accuracy > 0.8
    assert (ran.arrays[variance] >= 0).all() and (ran.arrays[variance] != 1).any()
    assert not [line for line in said(caplog) if "SparseFed:" in line]


def test_numbered_arrays_are_doubted_and_right_with_the_layout_that_the_log_shows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Ran("numbered", 1)
    (line,) = [line for line in said(caplog) if "SparseFed:" in line]
    (shown,) = re.findall(r"buffers=(\[[^\]]*\])", line)
    assert shown == "['4', '5']"  # what `apps.layout_of` gives both sides
    caplog.clear()
    ran = Ran("numbered", 12, told=True)
    assert ran.accuracy > 0.8 and (ran.arrays["5"] >= 0).all()
    assert not [line for line in said(caplog) if "SparseFed:" in line]


def test_tied_weights_are_doubted_and_stay_tied_with_a_layout(caplog: pytest.LogCaptureFixture) -> None:
    drifting = Ran("tied", 4)
    assert (drifting.arrays["encode.weight"] != drifting.arrays["decode.weight"]).any()
    (line,) = [line for line in said(caplog) if "SparseFed:" in line]
    assert "'decode.weight' and 'encode.weight' hold the same values" in line and "Layout.of(model)" in line
    caplog.clear()
    told = Ran("tied", 4, told=True)
    assert (told.arrays["encode.weight"] == told.arrays["decode.weight"]).all()
    assert not [line for line in said(caplog) if "SparseFed:" in line]


def test_a_frozen_base_does_not_count_as_dense(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ran = Ran("adapter", 4)
    accounting = ran.strategy.federation.accounting
    adapter = sum(ran.arrays[name].size for name in ("down.weight", "up.weight"))
    dense = accounting.dense_bytes(ran.strategy.model.arrays, ran.strategy.model.layout)
    evaluated = ran.strategy.ledger.total(direction="up", kind="evaluate")  # as a dense method has them
    assert (
        4 * adapter < (dense.up - evaluated) / 12 < 4 * adapter + 600
    )  # three clients, four rounds; names, headers, metrics
    assert 4 * adapter < dense.down / 24 < 4 * adapter + 600  # an evaluation, too
    base = {name for name in ran.arrays if name.startswith("base")}
    assert set(accounting.trained(ran.strategy.model.layout)) == ran.arrays.keys() - base
    assert any("4 arrays that no update has changed" in record.getMessage() for record in caplog.records)


def test_a_regression_of_doubles_answers_in_another_precision(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran("logistic", 15)
    assert ran.arrays["0"].dtype == np.float64 and ran.accuracy > 0.6
    assert ran.strategy.refusals == []
    assert sum("are float64" in line for line in said(caplog)) == 1


def test_a_model_of_15_weights_is_told_once_that_compression_cannot_pay(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran("tabular", 4)
    assert ran.strategy.model.layout.size == 15
    assert sum("15 weights, 60 bytes" in line for line in said(caplog)) == 1
    assert sum("compression does not pay in this run" in line for line in said(caplog)) == 1


def test_a_returned_model_is_not_sent_and_other_arrays_are(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[RecordDict] = []

    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.extend(contents)
        return MetricRecord({"clients": len(contents)})

    ran = Ran("torch", 3, evaluate_metrics_aggr_fn=aggregate)
    assert ran.result.evaluate_metrics_clientapp[3]["clients"] == 3
    assert all(content.array_records.keys() == {"confusion"} for content in seen)
    evaluated = ran.strategy.ledger.total(direction="up", kind="evaluate") / 9
    assert evaluated < 1500  # a confusion matrix of 928 bytes, metrics; the model takes 20 kB
    assert ran.strategy.ledger.total(direction="up") == ran.grid.passed["up"]


def test_lists_and_other_metrics_of_training_are_there(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran("torch", 1)
    assert ran.result.train_metrics_clientapp[1]["per_class"] == [0.25, 0.5]


class Decaying(SparseFed):
    """A strategy of one's own, as Flower's advanced example has it: a hook that changes the rate."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        if server_round > 1:
            config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)


class OwnLoop(Decaying):
    """The same with its own `start`."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 3, *_: Any, train_config: Any = None) -> Result:  # type: ignore[override]
        result, arrays = Result(), initial_arrays
        for number in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(number, arrays, train_config, grid))
            arrays, metrics = self.aggregate_train(number, replies)
            result.arrays, result.train_metrics_clientapp[number] = arrays, metrics
            replies = grid.send_and_receive(self.configure_evaluate(number, arrays, ConfigRecord(), grid))
            result.evaluate_metrics_clientapp[number] = self.aggregate_evaluate(number, replies)
        return result


@pytest.mark.parametrize("downlink", [None, Downlink(density=0.05)], ids=["whole", "deltas"])
@pytest.mark.parametrize("strategy_class", [Decaying, OwnLoop])
def test_hooks_and_loops_of_ones_own_work_and_are_billed(
    strategy_class: type[SparseFed], downlink: Downlink | None
) -> None:
    strategy, grid = strategy_class(downlink=downlink), LocalGrid(apps.app, 3, {"kind": "torch"})
    arrays = apps.record(apps.arrays_of("torch", apps.make_model("torch")))
    result = strategy.start(grid, arrays, num_rounds=3, train_config=ConfigRecord({"lr": 0.4}))
    rates = [metrics["lr"] for metrics in result.train_metrics_clientapp.values()]
    assert rates == pytest.approx([0.4, 0.2, 0.1])
    assert strategy.refusals == [] and len(result.evaluate_metrics_clientapp) == 3
    assert strategy.ledger.total(direction="down") == grid.passed["down"] > 0
    assert strategy.ledger.total(direction="up") == grid.passed["up"] > 0


def test_orders_that_an_own_loop_leaves_out_cost_nothing() -> None:
    strategy, grid = SparseFed(), LocalGrid(apps.app, 3, {"kind": "torch"})
    arrays = apps.record(apps.arrays_of("torch", apps.make_model("torch")))
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    strategy.aggregate_train(1, grid.send_and_receive(messages[:2]))
    assert strategy.ledger.total(direction="down") == grid.passed["down"]


# ---- what cannot work, and says so ---------------------------------------------------------------------------------


MODEL = {"weight": np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20), "bias": np.zeros(20, np.float32)}


def app_with(mods: list[Mod], answer: Any = None) -> ClientApp:
    """Return an app that adds a step to the model, or answers with what `answer` makes of the arrays."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {name: array.numpy() + np.float32(0.5) for name, array in message.content["arrays"].items()}
        content = (
            answer(arrays) if answer else {"arrays": apps.record(arrays), "metrics": MetricRecord({"num-examples": 3})}
        )
        return Message(RecordDict(content), reply_to=message)

    return app


def start(app: ClientApp, arrays: Mapping[str, Any] | None = None, rounds: int = 2, **options: Any) -> Result:
    strategy = SparseFed(fraction_evaluate=0.0, **options)
    config = ConfigRecord({"clipping_norm": 1.0})
    return strategy.start(LocalGrid(app), apps.record(MODEL if arrays is None else arrays), rounds, train_config=config)


LINE = compress(recipes.default(density=0.1))
LOCAL_DP = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=10.0, delta=1e-5)


@pytest.mark.parametrize("downlink", [None, Downlink(density=0.1)], ids=["whole", "deltas"])
@pytest.mark.parametrize(
    ("mods", "reason"),
    [
        ([LINE, fixedclipping_mod], "it bounds what one round of training adds, not what is sent"),
        ([LINE, message_size_mod, adaptiveclipping_mod], "wrappers.clipped"),
        ([fixedclipping_mod, LINE], "compress(...) must be the first"),
        ([adaptiveclipping_mod, LINE], "compress(...) must be the first"),
        ([LOCAL_DP, LINE], "compress(...) must be the first"),
    ],
    ids=["fixed inside", "adaptive inside", "fixed outside", "adaptive outside", "local DP outside"],
)
def test_mods_that_would_be_void_are_refused_with_the_way_that_leads_on(
    mods: list[Mod], reason: str, downlink: Downlink | None
) -> None:
    with pytest.raises(RunFailed, match=re.escape(reason)):
        start(app_with(mods), downlink=downlink)


@pytest.mark.parametrize("downlink", [None, Downlink(density=0.1)], ids=["whole", "deltas"])
@pytest.mark.parametrize(
    "mods",
    [
        [message_size_mod, LINE],
        [LINE, message_size_mod],
        [arrays_size_mod, LINE],
        [LINE, arrays_size_mod],
        [LINE, LOCAL_DP],
    ],
    ids=["size outside", "size inside", "arrays outside", "arrays inside", "local DP inside"],
)
def test_mods_that_keep_their_promise_are_let_be(mods: list[Mod], downlink: Downlink | None) -> None:
    result = start(app_with(mods), downlink=downlink)
    assert not np.array_equal(result.arrays["weight"].numpy(), MODEL["weight"])


def test_a_client_fn_is_refused_with_what_to_write() -> None:
    def client_fn(context: Context) -> Any:
        raise AssertionError("it is never called")

    with pytest.raises(
        RunFailed, match=re.escape("write app = ClientApp(mods=[compress(...)]) and a function under @app.train()")
    ):
        start(ClientApp(client_fn, mods=[LINE]))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no arrays"),
        ({"trees": np.zeros(900, np.uint8)}, "FedXgbBagging"),
        ({"weight": np.zeros((3, 3), np.int64), "ready": np.array(True)}, "only integer or boolean arrays"),
    ],
    ids=["empty", "XGBoost", "integers"],
)
def test_models_without_anything_to_train_are_refused_before_the_first_round(arrays: Any, words: str) -> None:
    app = app_with([LINE])
    with pytest.raises(LayoutError, match=words):
        start(app, arrays)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_models_of_every_floating_type_train(dtype: str) -> None:
    arrays = {name: array.astype(dtype) for name, array in MODEL.items()} | {"scale": np.array(1.5, dtype)}
    result = start(app_with([compress(encoder.dense())]), arrays)
    for name, array in arrays.items():
        trained = result.arrays[name].numpy()
        assert trained.dtype == array.dtype and trained.shape == array.shape
        np.testing.assert_allclose(trained, array + 1.0, rtol=2e-3)


METRICS = MetricRecord({"num-examples": 3})


ANSWERS: dict[str, tuple[Any, str]] = {
    "shape": (lambda arrays: {"a": arrays | {"weight": np.zeros((2, 2), np.float32)}, "m": METRICS}, r"\(2, 2\)"),
    "missing": (lambda arrays: {"a": {"weight": arrays["weight"]}, "m": METRICS}, "'bias' of shape .* is missing"),
    "unknown": (lambda arrays: {"a": arrays | {"new": arrays["bias"]}, "m": METRICS}, "the first is 'new'"),
    "dtype": (lambda arrays: {"a": arrays | {"bias": np.zeros(20, np.int64)}, "m": METRICS}, "is int64"),
    "two records": (lambda arrays: {"a": arrays, "b": arrays, "m": METRICS}, "exactly one ArrayRecord"),
    "no record": (lambda arrays: {"m": METRICS}, "exactly one ArrayRecord"),
    "no metrics": (lambda arrays: {"a": arrays}, "one MetricRecord with 'num-examples'"),
    "list": (lambda arrays: {"a": arrays, "m": MetricRecord({"num-examples": [3]})}, "must be a number"),
    "other key": (lambda arrays: {"a": arrays, "m": MetricRecord({"examples": 3})}, "found 0"),
    "NaN": (lambda arrays: {"a": {name: array * np.nan for name, array in arrays.items()}, "m": METRICS}, "NaN"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_cannot_be_used_fail_the_run_with_the_reason(name: str) -> None:
    answer, words = ANSWERS[name]
    with pytest.raises(RunFailed, match=words):
        start(app_with([LINE], answer))


def test_other_layouts_on_the_two_sides_are_named() -> None:
    layout = Layout.of_arrays(MODEL, buffers=["bias"])
    with pytest.raises(RunFailed, match=re.escape("give compress(...) and SparseFed(...) the same layout=")):
        start(app_with([LINE]), layout=layout)


def test_a_server_without_the_strategy_is_named() -> None:
    grid = LocalGrid(app_with([LINE]))
    with pytest.raises(RunFailed, match="mods="):  # the other way about: no mod
        start(app_with([]))
    replies = grid.send_and_receive(FedAvg().configure_train(1, apps.record(MODEL), ConfigRecord(), grid))
    assert all("needs the strategy `SparseFed`" in reply.error.reason for reply in replies)


def test_all_errors_are_ours() -> None:
    assert issubclass(RunFailed, FedpressError) and issubclass(LayoutError, FedpressError)
    assert Array(np.zeros(1)).shape == (1,)
