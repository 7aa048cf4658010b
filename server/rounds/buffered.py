"""Buffered asynchronous aggregation, the schedule beside synchronous rounds.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022. Some nodes are always at work;
whoever answers makes room for another. Once `size` replies are in the buffer the server takes a step. An update that
was trained from an older version counts less: (1 + staleness)^-a (section 5 there; Xie et al., "Asynchronous Federated
Optimization", 2019). Unlike the paper's, the mean here is divided by the sum of the weights and not by `size`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Buffered:
    """When the server steps, and what an update that comes late is worth.

    Attributes:
        size: replies in the buffer that make a step; at least 1.
        exponent: a above, at least 0; 0: all updates count alike.
        max_staleness: steps since the version trained from, beyond which a reply is refused; None: no limit.

    Raises:
        ValueError: one of them is out of range.
    """

    size: int
    exponent: float = 0.5
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.exponent < float("inf") or (self.max_staleness or 0) < 0:
            raise ValueError(
                f"schedule: {self}; expected a size of at least 1, an exponent of at least 0 and max_staleness None or"
                " at least 0"
            )

    def discount(self, staleness: int) -> float:
        """Return the part of its examples that an update counts.

        >>> Buffered(10).discount(0), Buffered(10).discount(3)
        (1.0, 0.5)
        """
        return float((1 + staleness) ** -self.exponent)
