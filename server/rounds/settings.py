"""Settings of a federation, in four groups: sampling, rounds, messages, model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from flwr.app import MetricRecord, RecordDict

from fedpress.compression.messages import orders, pieces
from fedpress.compression.messages.base_parts import BaseSource
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
"""Default of the most examples that a reply may claim, which is its weight in the mean."""

AggregateMetrics: TypeAlias = Callable[[list[RecordDict], str], MetricRecord]
"""Takes the records of replies and the name of the weight, and returns the metrics of all of them."""


@dataclass(frozen=True)
class Sampling:
    """Fractions and numbers of nodes that take part: FedAvg's arguments of these names.

    Attributes:
        fraction_train: fraction of the nodes that train in a round; 0: none does.
        fraction_evaluate: fraction of the nodes that evaluate the model after a round; 0: none does.
        min_train_nodes: fewest nodes that train.
        min_evaluate_nodes: fewest nodes that evaluate.
        min_available_nodes: number of connected nodes that a round waits for.

    Raises:
        ValueError: a fraction is out of range.
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
    """End of a round, and the replies that count.

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
    """Keys of the records in messages, and the aggregation of metrics: FedAvg's arguments.

    Attributes:
        weighted_by_key: name of the metric that is a reply's weight.
        arrayrecord_key: key of the record with the model.
        configrecord_key: key of the record with the application's configuration, and the order.
        train_metrics: aggregates metrics of training.
        evaluate_metrics: aggregates metrics of evaluation.
        piece_bytes: bytes of the longest entry of a message, in both directions, that is not cut into pieces.

    Raises:
        TypeError: a key is not a text.
        ValueError: pieces are too small.
    """

    weighted_by_key: str = "num-examples"
    arrayrecord_key: str = "arrays"
    configrecord_key: str = "config"
    train_metrics: AggregateMetrics = metrics.weighted_metrics
    evaluate_metrics: AggregateMetrics = metrics.weighted_metrics
    piece_bytes: int = pieces.LIMIT

    def __post_init__(self) -> None:
        for name in ("weighted_by_key", "arrayrecord_key", "configrecord_key"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name} must be a text, and is {getattr(self, name)!r}; were arguments of another strategy"
                    " given by"
                    " position? Krum and Bulyan have num_malicious_nodes in this place"
                )
        if self.piece_bytes < orders.LEAST_PIECE:
            raise ValueError(f"piece_bytes must be at least {orders.LEAST_PIECE}, and is {self.piece_bytes}")


@dataclass(frozen=True)
class ModelSettings:
    """Optimizer, downlink, masks and layout of the global model.

    Attributes:
        optimizer: optimizer on the mean update; `optimizers.sgd(1.0)` is FedAvg.
        downlink: compression of the download: deltas of a model that clients hold; None: the model goes whole.
        averaging: decay of the mean over the rounds that is evaluated and returned (`average.Average`), in [0, 1);
            0: the newest model is.
        masks: schedule of the mask over the rounds (`mask_schedules`).
        layout: which arrays are parameters and which buffers; None: guessed by the usual names. Clients must use the
            same.
        base: pretrained weights of the model that clients without a copy of them are sent; None: there are none.

    Raises:
        ValueError: `averaging` is out of range.
    """

    optimizer: ServerOptimizer = field(default_factory=optimizers.sgd)
    downlink: Downlink | None = None
    averaging: float = 0.0
    masks: MaskSchedule = Fixed(None)
    layout: Layout | None = None
    base: BaseSource | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), and is {self.averaging}")

    @property
    def prediction(self) -> float:
        """Factor of the update that the download predicts; 0: nothing is predicted."""
        return self.downlink.prediction if self.downlink else 0.0
