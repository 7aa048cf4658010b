"""Confidence interval of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev


def half_width(values: Sequence[float]) -> float:
    """Return half the width of Student's 95 % interval of the mean of independent values; infinite for one.

    >>> round(half_width([0.97, 0.98, 0.99]), 4), half_width([0.97])
    (0.0248, inf)
    """
    if len(values) < 2:
        return math.inf
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
