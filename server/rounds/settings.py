"""Settings of a federation's rounds, each group a value of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from flwr.app import MetricRecord, RecordDict

from fedpress.compression.settings import STRICT, Field
from fedpress.compression.settings import dataclass as settings_class
from fedpress.compression.tensors.layout import Layout
from fedpress.server.model import optimizers
from fedpress.server.model.mask_schedules import Fixed, MaskSchedule
from fedpress.server.model.optimizers import ServerOptimizer
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds import metrics
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.closing import Closing

MAX_EXAMPLES = 1e9
"""Default cap on the number of examples that a reply may claim: its weight in the mean."""

AggregateMetrics: TypeAlias = Callable[[list[RecordDict], str], MetricRecord]
"""Takes the records of replies and the name of the weight, and returns the metrics of all of them."""


@dataclass(frozen=True)
class Sampling:
    """Which part of the nodes takes part: FedAvg's arguments of these names.

    Attributes:
        fraction_train: of the nodes, in a round; 0: nobody trains.
        fraction_evaluate: of the nodes, that evaluate the model after a round; 0: nobody does.
        min_train_nodes: fewest that train.
        min_evaluate_nodes: fewest that evaluate.
        min_available_nodes: a round waits for so many to be connected.
    """

    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    min_train_nodes: int = 2
    min_evaluate_nodes: int = 2
    min_available_nodes: int = 2

    def __post_init__(self) -> None:
        for name in ("fraction_train", "fraction_evaluate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, and is {getattr(self, name)}")


@settings_class(frozen=True, config=STRICT)
class Rounds(Closing):
    """When a round begins and ends, and which replies count.

    Raises:
        ValueError: A value is out of range.
    """

    schedule: Buffered | None = Field(
        default=None,
        description="None: synchronous rounds. `Buffered(size)`: `fraction_train` of the nodes are at work at any time,"
        " and a round is what happens until `size` replies are in and the model steps.",
    )
    max_examples: float = Field(
        default=MAX_EXAMPLES, gt=0, description="Replies that claim more examples are refused: a reply's weight."
    )

    def __post_init__(self) -> None:
        if self.schedule is not None and self.over_selection:
            raise ValueError("over_selection has no meaning with a buffer; fraction_train says how many are at work")


@dataclass(frozen=True)
class MessageFormat:
    """Where messages hold what, and how metrics become one: FedAvg's arguments.

    Attributes:
        weighted_by_key: metric that is a reply's weight.
        arrayrecord_key: of the record with the model.
        configrecord_key: of the record with the application's configuration, and the order.
        train_metrics: aggregates those of training.
        evaluate_metrics: aggregates those of evaluation.
    """

    weighted_by_key: str = "num-examples"
    arrayrecord_key: str = "arrays"
    configrecord_key: str = "config"
    train_metrics: AggregateMetrics = metrics.weighted_metrics
    evaluate_metrics: AggregateMetrics = metrics.weighted_metrics


@dataclass(frozen=True)
class ModelSettings:
    """How the global model is kept, stepped and sent.

    Attributes:
        optimizer: the server's rule on the mean update; `optimizers.sgd(1.0)` is FedAvg.
        downlink: how the model goes down: deltas of a held model that clients keep (`versions.Downlink`); None: whole.
        averaging: decay of the mean over the rounds that is evaluated and returned (`average.Average`), in [0, 1);
            0: the newest model is.
        masks: which weights the model has, from round to round (`mask_schedules`).
        layout: which arrays are parameters and which buffers; None: guessed by the usual names. Clients must use the
            same.

    Raises:
        ValueError: `averaging` is out of range.
    """

    optimizer: ServerOptimizer = field(default_factory=optimizers.sgd)
    downlink: Downlink | None = None
    averaging: float = 0.0
    masks: MaskSchedule = Fixed(None)
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), and is {self.averaging}")

    @property
    def prediction(self) -> float:
        """Factor of what the download predicts of an update; 0: nothing is predicted."""
        return self.downlink.prediction if self.downlink else 0.0
