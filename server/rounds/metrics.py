"""Metrics that clients send beside their updates: the number of examples, and the weighted mean of the others.

The strategy's own figures of a round, such as the number of accepted replies, stand in the same record under names that
begin with `orders.PREFIX`; no client's metric may have such a name.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from logging import ERROR, WARNING

from flwr.app import MetricRecord, RecordDict
from flwr.supercore import log

from fedpress.compression.messages import orders

REPLIES = f"{orders.PREFIX}replies"
"""Name of the number of accepted replies."""
REFUSED = f"{orders.PREFIX}refused"
"""Name of the number of refused replies; with `-` and a reason behind it, of those refused for that reason."""
STALENESS = f"{orders.PREFIX}staleness"
"""With `-mean` and `-max` behind it, name of the accepted replies' staleness, in steps."""

FEWEST_EXAMPLES = 1e-9
"""Smallest weight of a reply: products with still smaller ones would lose their bits."""
MOST_NAME = 200
"""Largest length of a metric's name, in characters."""
MOST_NUMBERS = 100_000
"""Most numbers in a reply's metrics, those in lists included: they are kept until the round's end."""


def check(content: RecordDict) -> None:
    """Check the metrics of a reply: they are kept, averaged, written into checkpoints and shown.

    Args:
        content: records of the reply.

    Raises:
        MessageError: there are too many, or a name is too long, not printable, or one of the strategy's own.
    """
    numbers = 0
    for record in content.metric_records.values():
        numbers += 1
        for name, value in record.items():
            numbers += len(value) if isinstance(value, list) else 1
            if len(name) > MOST_NAME or not name.isprintable():
                raise orders.MessageError(
                    f"the metric {name[:MOST_NAME]!r} has a name of {len(name)} characters; expected at most"
                    f" {MOST_NAME}, all printable"
                )
            if name.startswith(orders.PREFIX):
                raise orders.MessageError(
                    f"the metric {name!r} has a name of the server's own; those begin with {orders.PREFIX!r}, so give"
                    " it another one"
                )
    if numbers > MOST_NUMBERS:
        raise orders.MessageError(f"the metrics are {numbers} numbers, expected at most {MOST_NUMBERS}")


def examples(content: RecordDict, key: str, most: float) -> float:
    """Return the number of examples that a reply claims, which is its weight in a mean.

    Args:
        content: records of the reply.
        key: name of the metric.
        most: largest number that is accepted.

    Raises:
        MessageError: the number is missing or out of range, or the metrics fail their check (`check`).
    """
    check(content)
    holders = [record for record in content.metric_records.values() if key in record]
    if len(holders) != 1:
        raise orders.MessageError(f"expected one MetricRecord with {key!r} in the app's reply, found {len(holders)}")
    value = holders[0][key]
    if isinstance(value, list):
        raise orders.MessageError(f"{key!r} must be a number above 0 and at most {most:g}, and is a list")
    if not (math.isfinite(value) and FEWEST_EXAMPLES <= value <= most):
        raise orders.MessageError(
            f"{key!r} must be a number above 0 and at most {most:g}, at least {FEWEST_EXAMPLES:g}, and is {value:g}"
        )
    return float(value)


def weighted_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the weighted mean of every metric, over the replies that have it; lists entry by entry.

    Unlike in Flower's own, replies need not hold the same metrics, and one with a value that is not finite does not
    have it. Where replies disagree whether a metric is a number or a list, or on its length, the kind with the greatest
    weight counts, and the log says so.

    >>> pairs = ((1, [0.0, 4.0]), (3, [4.0, 8.0]))
    >>> replies = [RecordDict({"m": MetricRecord({"n": n, "loss": loss})}) for n, loss in pairs]
    >>> weighted_metrics(replies, "n")["loss"]
    [3.0, 7.0]

    Args:
        contents: records of replies, each with one MetricRecord that holds `weighted_by_key`.
        weighted_by_key: name of the weight, which the result lacks.
    """
    means: dict[str, dict[int | None, _Mean]] = {}  # by name, and by the length of a list; None: a number
    for content in contents:
        values = {
            name: value
            for record in content.metric_records.values()
            for name, value in record.items()
            if all(math.isfinite(each) for each in (value if isinstance(value, list) else [value]))
        }
        weight = float(values.pop(weighted_by_key))  # type: ignore[arg-type]
        for name, value in values.items():
            length = len(value) if isinstance(value, list) else None
            means.setdefault(name, {}).setdefault(length, _Mean()).add(value, weight)
    result = MetricRecord()
    for name, kinds in means.items():
        length = max(kinds, key=lambda kind: kinds[kind].weight)
        if len(kinds) > 1:
            shown = ", ".join("a number" if kind is None else f"a list of {kind}" for kind in kinds)
            log(WARNING, "the metric %r is %s: the mean is over those of one kind", name, shown)
        mean = kinds[length].result()
        if all(map(math.isfinite, mean)):  # a sum may be beyond the range
            result[name] = mean[0] if length is None else mean
    return result


def averaged(
    average: Callable[[list[RecordDict], str], MetricRecord], contents: list[RecordDict], weighted_by_key: str
) -> MetricRecord:
    """Return the clients' metrics, none where the application's function fails on what they have sent.

    Args:
        average: the function, such as `weighted_metrics`.
        contents: records of replies.
        weighted_by_key: name of the weight.
    """
    try:
        return MetricRecord(dict(average(contents, weighted_by_key)))
    except Exception as error:
        log(ERROR, "metrics of %d replies cannot be aggregated, and are left out", len(contents), exc_info=error)
        return MetricRecord()


class _Mean:
    """Weighted mean of lists of one length; a number is a list of one."""

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: list[float] = []

    def add(self, value: float | Sequence[float], weight: float) -> None:
        values = value if isinstance(value, Sequence) else [value]
        self._sums = [
            total + weight * each for total, each in zip(self._sums or [0.0] * len(values), values, strict=True)
        ]
        self.weight += weight

    def result(self) -> list[float]:
        return [total / self.weight for total in self._sums]


def count_replies(record: MetricRecord, counted: int, reasons: Sequence[str], staleness: Sequence[int]) -> None:
    """Add the numbers of accepted and refused replies, and their staleness, to a round's metrics.

    >>> record = MetricRecord({"loss": 0.5})
    >>> count_replies(record, 2, ["late", "wrong ticket", "late"], [0, 3])
    >>> {name: value for name, value in record.items() if name.startswith("fedpress.refused")}
    {'fedpress.refused': 3, 'fedpress.refused-late': 2, 'fedpress.refused-wrong-ticket': 1}
    >>> record["fedpress.replies"], record["fedpress.staleness-mean"], record["fedpress.staleness-max"]
    (2, 1.5, 3)

    Args:
        record: metrics of the round; changed in place.
        counted: number of accepted replies.
        reasons: reason of each refusal.
        staleness: staleness of each accepted reply, in steps; empty: rounds are synchronous.
    """
    if staleness:
        record[f"{STALENESS}-mean"] = sum(staleness) / len(staleness)
        record[f"{STALENESS}-max"] = max(staleness)
    record[REPLIES] = counted
    record[REFUSED] = len(reasons)
    for reason, count in Counter(reasons).items():
        record[f"{REFUSED}-{reason.replace(' ', '-')}"] = count
