"""What a run in an app's own ServerApp says in the log: what Flower's strategies say, and its bytes beside dense ones.

Flower's lines keep their words, so that who reads or searches a log finds them again.
"""

import io
from collections.abc import Sequence
from logging import INFO, WARNING
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result
from flwr.supercore import log

from fedpress.compression.ledger import format_bytes
from fedpress.server.rounds.federation import Federation

PAYS = 1.25
"""Least ratio to a dense method, in both directions together, from which compression is said to pay."""


class Traffic(NamedTuple):
    """Bytes of a run so far, and those of a dense method with the same messages."""

    up: int
    down: int
    dense_up: int
    dense_down: int

    @classmethod
    def of(cls, federations: Sequence[Federation]) -> "Traffic":
        """Return the traffic of the models that are trained, students apart."""
        rows = []
        for federation in federations:
            ledger = federation.accounting.ledger
            dense = federation.accounting.dense_bytes(federation.model.arrays, federation.model.layout)
            down = ledger.total(direction="down") - ledger.total(direction="down", kind="bundle")
            rows.append((ledger.total(direction="up"), down, dense.up, dense.down))
        return cls(*(sum(column) for column in zip(*rows, strict=True)))

    @property
    def ratio(self) -> float | None:
        """Compression ratio in both directions together; None: nothing was sent."""
        sent = self.up + self.down
        return (self.dense_up + self.dense_down) / sent if sent else None


def starting(
    name: str, rounds: int, arrays: ArrayRecord, train_config: ConfigRecord | None, evaluate_config: ConfigRecord | None
) -> None:
    """Log what a run begins with.

    Args:
        name: name of the strategy.
        rounds: number of rounds.
        arrays: the initial model.
        train_config: the application's configuration for training.
        evaluate_config: the same for evaluation on nodes.
    """
    size = sum(len(array.data) for array in arrays.values()) / 1024**2
    log(INFO, "Starting %s strategy:", name)
    log(INFO, "\t├── Number of rounds: %d", rounds)
    log(INFO, "\t├── ArrayRecord (%.2f MB)", size)
    log(INFO, "\t├── ConfigRecord (train): %s", _shown(train_config))
    log(INFO, "\t├── ConfigRecord (evaluate): %s", _shown(evaluate_config))


def round_over(traffic: Traffic) -> None:
    """Log the bytes of a run so far."""
    log(
        INFO,
        "\t└──> So far %s up (%s), %s down (%s)",
        format_bytes(traffic.up), _less(traffic.dense_up, traffic.up),
        format_bytes(traffic.down), _less(traffic.dense_down, traffic.down),
    )  # fmt: skip


def finished(
    result: Result, traffic: Traffic, seconds: float, replies: int, refused: int, untrained: Sequence[str] = ()
) -> None:
    """Log the end of a run: the metrics by round, and a table of its bytes.

    Args:
        result: result of the run.
        traffic: its bytes.
        seconds: its duration.
        replies: number of replies that counted.
        refused: number of replies that did not.
        untrained: names of parameters that no update has changed.
    """
    log(INFO, "")
    log(INFO, "Strategy execution finished in %.2fs", seconds)
    log(INFO, "")
    log(INFO, "Final results:")
    log(INFO, "")
    for line in io.StringIO(str(result)):
        log(INFO, "\t%s", line.rstrip("\n"))
    for line in table(result, traffic, replies, refused):
        log(INFO, "\t%s", line)
    if untrained:
        log(
            INFO,
            "\t%d arrays that no update has changed (not trained, or never chosen) are not counted as dense,"
            " such as %r",
            len(untrained), untrained[0],
        )  # fmt: skip
    log(INFO, "")
    ratio = traffic.ratio
    if ratio is not None and ratio < PAYS:
        log(
            WARNING,
            "compression does not pay in this run: %s in both directions, a dense method sends %s. The model"
            " is small, the"
            " density high, the run short, or the way down is whole (downlink=)",
            format_bytes(traffic.up + traffic.down), format_bytes(traffic.dense_up + traffic.dense_down),
        )  # fmt: skip


def table(result: Result, traffic: Traffic, replies: int, refused: int) -> list[str]:
    """Return the closing table, a line for each row.

    Args:
        result: result of the run.
        traffic: its bytes.
        replies: number of replies that counted.
        refused: number of replies that did not.
    """
    sent, dense = traffic.up + traffic.down, traffic.dense_up + traffic.dense_down
    rows = [
        ("", "sent", "dense method", ""),
        ("up", format_bytes(traffic.up), format_bytes(traffic.dense_up), _less(traffic.dense_up, traffic.up)),
        ("down", format_bytes(traffic.down), format_bytes(traffic.dense_down), _less(traffic.dense_down, traffic.down)),
        ("both", format_bytes(sent), format_bytes(dense), _less(dense, sent)),
    ]
    lines = [f"{name:<6}{first:>10}  {second:>12}  {less}".rstrip() for name, first, second, less in rows]
    lines.append(f"{replies} replies counted, {refused} were refused")
    for who, by_round in (
        ("training on clients", result.train_metrics_clientapp),
        ("evaluation on clients", result.evaluate_metrics_clientapp),
        ("evaluation on the server", result.evaluate_metrics_serverapp),
    ):
        if by_round:
            last = max(by_round)
            if shown := _metrics(by_round[last]):
                lines.append(f"{who}, round {last}: {shown}")
    return lines


def _metrics(record: MetricRecord) -> str:
    """Return the app's own metrics of a round, without the strategy's counters."""
    own = {
        name: value
        for name, value in record.items()
        if not name.startswith(("fedpress.", "refused", "staleness-")) and name != "replies"
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in own.items() if not isinstance(value, list))


def _less(dense: int, sent: int) -> str:
    if not sent or not dense:
        return "nothing to compare"
    ratio = dense / sent
    return f"{ratio:,.1f}x less than dense" if ratio >= 1 else f"{1 / ratio:,.1f}x more than dense"


def _shown(config: ConfigRecord | None) -> str:
    if not config:
        return "(empty!)"
    return str({name: "<bytes>" if isinstance(value, bytes) else value for name, value in config.items()})
