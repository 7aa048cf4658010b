"""Buffered asynchronous aggregation (FedBuff), the alternative to synchronous rounds.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022. Some nodes are always at work;
a node that answers makes room for another. Once `size` replies are in the buffer the server takes a step. An update
that was trained from an older version counts less: (1 + staleness)^-a (section 5 there; Xie et al., "Asynchronous
Federated Optimization", 2019). Unlike the paper's, the mean here is divided by the sum of the weights, not by `size`.
"""

from fedpress.compression.settings import STRICT, Field, dataclass
from fedpress.server.rounds.closing import Staleness


@dataclass(frozen=True, config=STRICT)
class Buffered(Staleness):
    """Size of the buffer whose replies make a step, and the discount of stale updates."""

    size: int = Field(ge=1, description="Replies in the buffer that make a step.")
