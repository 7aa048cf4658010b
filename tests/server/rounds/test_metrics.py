"""Metrics of replies: the weight of a client is checked, the others are averaged by it."""

import math
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict
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
    assert dict(weighted_metrics(contents, "n")) == {"loss": 5.0, "extra": 7.0}


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
