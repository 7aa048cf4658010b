"""Code written for Flower's other strategies: whatever it brings is refused by name, with what to write instead."""

import inspect
import re
from typing import Any

import flwr.server
import flwr.server.strategy as legacy_strategies
import flwr.serverapp.strategy as strategies
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from tests.apps.local_grid import LocalGrid

from fedpress import FedpressError, SparseFed, compress
from fedpress.compression.encoders import recipes
from fedpress.compression.messages import records
from fedpress.server.strategies import drop_in
from fedpress.server.strategies.drop_in import ArgumentError, LegacyError, WrapperError

OWN = set(inspect.signature(SparseFed.__init__).parameters)
CLASSES = [getattr(strategies, name) for name in strategies.__all__]
WRAPPERS = [name for name in strategies.__all__ if name.startswith("DifferentialPrivacy")]
LEGACY_WRAPPERS = [name for name in dir(legacy_strategies) if name.startswith(("DifferentialPrivacy", "DPFedAvg"))]


def arguments(strategy: Any) -> set[str]:
    return set(inspect.signature(strategy.__init__).parameters) - {"self", "strategy", "accountant", "args", "kwargs"}


FOREIGN = sorted(
    {
        name
        for each in CLASSES
        if issubclass(each, FedAvg)  # xgboost's too; a wrapper's own arguments are given to the wrapper
        for name in arguments(each) - OWN
    }
    | (arguments(legacy_strategies.FedAvg) - OWN - {"evaluate_metrics_aggr_fn"})
)


def model() -> ArrayRecord:
    return records.from_numpy({"weight": np.linspace(-1, 1, 400, dtype=np.float32)})


app = ClientApp(mods=[compress(recipes.default(density=0.1))])


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays = {"weight": message.content["arrays"]["weight"].numpy() + np.float32(1000)}
    content = {"arrays": records.from_numpy(arrays), "metrics": MetricRecord({"num-examples": 3})}
    return Message(RecordDict(content), reply_to=message)


def test_there_are_strategies_to_come_from() -> None:
    assert {"proximal_mu", "eta", "tau", "server_momentum", "num_malicious_nodes", "q", "fraction_fit"} <= set(FOREIGN)
    assert len(WRAPPERS) == 4 and len(LEGACY_WRAPPERS) >= 4


@pytest.mark.parametrize("name", FOREIGN)
def test_every_argument_of_flowers_strategies_is_either_ours_or_has_an_answer(name: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"SparseFed takes no {name!r}: ")) as refused:
        SparseFed(**{name: 0.1})
    assert isinstance(refused.value, TypeError) and isinstance(refused.value, FedpressError)


def test_the_answers_name_what_there_is() -> None:
    text = " ".join(drop_in.INSTEAD.values())
    from fedpress.server.model import optimizers

    for name in set(re.findall(r"optimizers\.(\w+)", text)):
        assert callable(getattr(optimizers, name))
    for name in ("fraction_train", "min_train_nodes", "train_metrics_aggr_fn", "weighted_by_key", "optimizer"):
        assert name in OWN and name in text


def test_an_unknown_argument_is_a_typing_mistake_or_nobodys() -> None:
    with pytest.raises(TypeError, match="'chekpoints'; did you mean 'checkpoints'"):
        SparseFed(chekpoints=None)
    with pytest.raises(TypeError, match="'zzz', nor do Flower's strategies"):
        SparseFed(zzz=1)


def test_arguments_of_krum_by_position_are_refused() -> None:
    with pytest.raises(TypeError, match="weighted_by_key must be a text, and is 1;.*Krum"):
        SparseFed(1.0, 1.0, 2, 2, 2, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRAPPERS)
def test_flowers_wrappers_for_privacy_are_refused_by_name(name: str) -> None:
    options = {"noise_multiplier": 0.1, "num_sampled_clients": 3}
    if "Fixed" in name:
        options["clipping_norm"] = 1.0
    grid = LocalGrid(app)
    wrapped = getattr(strategies, name)(SparseFed(fraction_evaluate=0.0), **options)
    with pytest.raises(WrapperError, match=f"{name} does not work around SparseFed: it clips"):
        wrapped.start(grid, model(), num_rounds=1)
    assert grid.passed == {"up": 0, "down": 0}  # before anything is sent

    class Own(type(wrapped)):  # type: ignore[misc]
        """A subclass of one's own."""

    with pytest.raises(WrapperError, match=f"{name} does not work around"):
        Own(SparseFed(fraction_evaluate=0.0), **options).start(grid, model(), num_rounds=1)
    with pytest.raises(WrapperError, match=f"{name} does not work around"):  # with a harmless one between
        between = type(wrapped)(Logging(SparseFed(fraction_evaluate=0.0)), **options)
        between.start(grid, model(), num_rounds=1)


class Logging(Strategy):
    """A strategy around another that changes nothing."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        self.inner.summary()


def test_another_wrapper_works_and_is_told_once_what_it_cannot_see(caplog: pytest.LogCaptureFixture) -> None:
    inner, grid = SparseFed(fraction_evaluate=0.0), LocalGrid(app)
    result = Logging(inner).start(grid, model(), num_rounds=3)
    assert (records.to_numpy(result.arrays)["weight"] > 100).any()
    assert inner.ledger.total() == sum(grid.passed.values())
    said = [line for line in caplog.messages if "SparseFed works inside Logging" in line]
    assert len(said) == 1


@pytest.mark.parametrize("name", sorted(drop_in.LEGACY))
def test_methods_of_the_api_before_messages_name_the_way(name: str) -> None:
    strategy = SparseFed()
    with pytest.raises(LegacyError, match="Write app = ServerApp"):
        getattr(strategy, name)
    assert not hasattr(strategy, name)  # an AttributeError, so that whoever asks gets an answer
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        strategy.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("name", LEGACY_WRAPPERS)
def test_wrappers_of_the_api_before_messages_name_the_way(name: str) -> None:
    wrapper = getattr(legacy_strategies, name)
    known = {
        "noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 3, "clip_norm": 1.0,
        "init_clip_norm": 1.0,
    }  # fmt: skip
    options = {name: value for name, value in known.items() if name in inspect.signature(wrapper.__init__).parameters}
    with pytest.raises(LegacyError, match=re.escape("under @app.main()")):
        wrapper(SparseFed(), **options).initialize_parameters(client_manager=None)


def test_a_legacy_server_is_refused_by_its_first_call() -> None:
    server = flwr.server.Server(client_manager=flwr.server.SimpleClientManager(), strategy=SparseFed())  # type: ignore[arg-type]
    with pytest.raises(LegacyError, match="server_fn"):
        server.fit(num_rounds=1, timeout=None)


def test_hooks_called_from_a_script_have_no_wrapper() -> None:
    strategy, grid = SparseFed(fraction_evaluate=0.0), LocalGrid(app)
    replies = grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert drop_in.refuse_wrappers(strategy, drop_in.calling_frame()) == ""
    assert isinstance(strategy.start(grid, arrays, num_rounds=1), Result)
