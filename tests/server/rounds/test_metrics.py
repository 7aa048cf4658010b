"""Metrics of replies: the weight of a client is checked, the others are averaged by it."""

import math
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.messages import orders
from fedpress.server.rounds.metrics import FEWEST_EXAMPLES, MOST_NAME, MOST_NUMBERS, examples, weighted_metrics


def reply(**metrics: float) -> RecordDict:
    return RecordDict({"metrics": MetricRecord(metrics)})


def test_metrics_are_averaged_by_weight_over_the_replies_that_hold_them() -> None:
    contents = [
        RecordDict({"m": MetricRecord({"n": 1, "loss": 2.0, "extra": 7.0})}),
        RecordDict({"m": MetricRecord({"n": 3, "loss": 6.0, "list": [1.0, 2.0]})}),
    ]
    assert dict(weighted_metrics(contents, "n")) == {"loss": 5.0, "extra": 7.0, "list": [1.0, 2.0]}


NUMBERS = st.one_of(st.integers(-(2**31), 2**31), st.floats(-1e6, 1e6))


@given(
    weights=st.lists(st.one_of(st.integers(1, 10**6), st.floats(0.5, 1e6)), min_size=1, max_size=5),
    lengths=st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 4), max_size=4),
    data=st.data(),
)
def test_replies_that_all_hold_the_same_metrics_give_what_fedavg_gives(
    weights: list[float], lengths: dict[str, int], data: st.DataObject
) -> None:
    """Numbers (length 0 here), and lists of one length for each name, of integers or of floats."""
    lengths.pop("n", None)
    contents = []
    for weight in weights:
        values: dict[str, Any] = {"n": weight}
        for name, length in lengths.items():
            kind = data.draw(st.sampled_from([st.integers(-(2**31), 2**31), st.floats(-1e6, 1e6)]))
            values[name] = data.draw(st.lists(kind, min_size=length, max_size=length)) if length else data.draw(NUMBERS)
        contents.append(RecordDict({"m": MetricRecord(values)}))
    flower, ours = FedAvg().train_metrics_aggr_fn(contents, "n"), weighted_metrics(contents, "n")
    assert ours.keys() == flower.keys()
    for name in flower:
        assert ours[name] == pytest.approx(flower[name], rel=1e-6, abs=1e-3)


def test_lists_of_other_lengths_and_with_other_values_cost_their_reply_the_metric_and_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contents = [
        RecordDict({"m": MetricRecord({"n": 1, "per class": [1.0, 3.0], "loss": [1.0]})}),
        RecordDict({"m": MetricRecord({"n": 3, "per class": [5.0, 7.0], "loss": 3.0})}),
        RecordDict({"m": MetricRecord({"n": 2, "per class": [1.0, 2.0, 3.0], "loss": 1.0})}),
        RecordDict({"m": MetricRecord({"n": 9, "per class": [math.nan, 2.0], "loss": math.inf})}),
        RecordDict({"m": MetricRecord({"n": 9, "empty": []})}),
    ]
    assert dict(weighted_metrics(contents, "n")) == {"per class": [4.0, 6.0], "loss": 2.2, "empty": []}
    assert "'per class' is a list of 2, a list of 3" in caplog.text
    assert "'loss' is a list of 1, a number" in caplog.text


def test_a_mean_beyond_the_range_is_left_out() -> None:
    assert dict(weighted_metrics([reply(n=1000.0, loss=1e308)], "n")) == {}


@given(st.lists(st.tuples(st.floats(0.5, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8))
def test_a_mean_lies_within_what_was_averaged_and_does_not_depend_on_the_unit(pairs: list[tuple[float, float]]) -> None:
    mean = weighted_metrics([reply(n=weight, loss=loss) for weight, loss in pairs], "n")["loss"]
    doubled = weighted_metrics([reply(n=2 * weight, loss=loss) for weight, loss in pairs], "n")["loss"]
    losses = [loss for _, loss in pairs]
    assert min(losses) - 1e-6 <= mean <= max(losses) + 1e-6  # type: ignore[operator]
    assert doubled == pytest.approx(mean)


@pytest.mark.parametrize("claimed", [0, -1, 101.0, math.nan, math.inf, 5e-324, 2**64 - 1])
def test_a_weight_out_of_range_is_refused(claimed: float) -> None:
    with pytest.raises(orders.MessageError, match="must be a number above 0 and at most 100"):
        examples(reply(n=claimed), "n", 100)


def test_the_weight_must_be_there_once() -> None:
    assert examples(reply(n=100), "n", 100) == 100
    for content in (
        RecordDict(),
        reply(other=1),
        RecordDict({"a": MetricRecord({"n": 1}), "b": MetricRecord({"n": 1})}),
    ):
        with pytest.raises(orders.MessageError, match="expected one MetricRecord with 'n'"):
            examples(content, "n", 100)
    with pytest.raises(orders.MessageError, match="must be a number"):
        examples(RecordDict({"a": MetricRecord({"n": [1, 2]})}), "n", 100)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"fedpress.replies": 1}, "a name of the server's own"),
        ({"a" * (MOST_NAME + 1): 1}, "expected at most 200, all printable"),
        ({"a\n\x1b[2J": 1}, "all printable"),
        ({"list": [1.0] * (MOST_NUMBERS + 1)}, "expected at most 100000"),
        (dict.fromkeys(map(str, range(MOST_NUMBERS + 1)), 1), "expected at most 100000"),
    ],
)  # fmt: skip
def test_metrics_that_cannot_be_kept_are_refused(metrics: dict[str, Any], reason: str) -> None:
    with pytest.raises(orders.MessageError, match=reason):
        examples(RecordDict({"a": MetricRecord({"n": 1, **metrics})}), "n", 100)


def test_fractions_of_an_example_are_weights_too() -> None:
    assert examples(reply(n=FEWEST_EXAMPLES), "n", 100) == FEWEST_EXAMPLES
