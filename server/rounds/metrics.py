"""Metrics that clients send beside their updates: the number of examples, and the weighted mean of the others."""

import math
from collections import Counter
from collections.abc import Sequence

from flwr.app import MetricRecord, RecordDict

from fedpress.compression.messages import orders


def examples(content: RecordDict, key: str, most: float) -> float:
    """Return the number of examples that a reply claims, which is its weight in a mean.

    Args:
        content: records of the reply.
        key: name of the metric.
        most: largest number that is accepted.

    Raises:
        MessageError: the number is missing or out of range.
    """
    holders = [record for record in content.metric_records.values() if key in record]
    if len(holders) != 1:
        raise orders.MessageError(f"expected one MetricRecord with {key!r} in the app's reply, found {len(holders)}")
    value = holders[0][key]
    if isinstance(value, list) or not (math.isfinite(value) and 0 < value <= most):
        raise orders.MessageError(f"{key!r} must be a number above 0 and at most {most:g}, and is {value}")
    return float(value)


def weighted_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the weighted mean of every scalar metric, over the replies that have it.

    Unlike in Flower's own, replies need not hold the same metrics.

    Args:
        contents: records of replies, each with one MetricRecord that holds `weighted_by_key`.
        weighted_by_key: name of the weight, which the result lacks.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for content in contents:
        scalars = {
            name: float(value)
            for record in content.metric_records.values()
            for name, value in record.items()
            if not isinstance(value, list) and math.isfinite(value)
        }
        weight = scalars.pop(weighted_by_key)
        for name, value in scalars.items():
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return MetricRecord({name: value / weights[name] for name, value in sums.items()})


def count_replies(record: MetricRecord, counted: int, reasons: Sequence[str], staleness: Sequence[int]) -> None:
    """Add the numbers of accepted and refused replies, and their staleness, to a round's metrics.

    >>> record = MetricRecord({"loss": 0.5})
    >>> count_replies(record, 2, ["late", "wrong ticket", "late"], [0, 3])
    >>> record["replies"], record["refused"], record["refused-late"], record["refused-wrong-ticket"]
    (2, 3, 2, 1)
    >>> record["staleness-mean"], record["staleness-max"]
    (1.5, 3)

    Args:
        record: metrics of the round; changed in place.
        counted: number of accepted replies.
        reasons: reason of each refusal.
        staleness: staleness of each accepted reply, in steps; empty: rounds are synchronous.
    """
    if staleness:
        record["staleness-mean"], record["staleness-max"] = sum(staleness) / len(staleness), max(staleness)
    record["replies"] = counted
    record["refused"] = len(reasons)
    for reason, count in Counter(reasons).items():
        record[f"refused-{reason.replace(' ', '-')}"] = count
