"""Settings of checkpoints, for those who import no torch."""

from typing import Final

BUDGET: Final = 0.05
"""Default of the share of a run's time that checkpoints may take."""
