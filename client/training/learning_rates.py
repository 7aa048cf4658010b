"""Schedules of the local learning rate over the rounds of a run and the local steps of a round.

The common clock of all clients is the round: clients have unlike numbers of steps, and most miss most rounds. So a
schedule goes by the share of the run that is over, the round's own steps included (docs/decisions/0025).
"""

from __future__ import annotations

import math

from fedpress.client.settings import Training


def factor(settings: Training, step: int, steps: int, round: int = 1, rounds: int = 1) -> float:
    """Return what the learning rate is multiplied by at a local step, above 0 and at most 1.

    Law: without schedule and warm-up it is 1; after the warm-up of the run, and of the round, it never rises.

    Args:
        settings: Schedule and warm-up.
        step: Number of the step in its round, from 0.
        steps: Number of local steps of the round.
        round: Number of the round, from 1; one beyond the last counts as the last.
        rounds: Number of rounds of the run.

    >>> cosine = Training(schedule="cosine", warmup_rounds=1)
    >>> [f"{factor(cosine, 0, 2, number, 5):.3f}" for number in (1, 2, 3, 4, 5)]
    ['0.500', '1.000', '0.854', '0.500', '0.146']
    >>> [factor(Training(warmup_steps=3), step, 6) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    before = min(round, rounds) - 1  # rounds that are over
    warm, value = settings.warmup_rounds, 1.0
    if settings.warmup_steps:
        value *= min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if warm and before + step / steps < warm:
        return value * min(1.0, (before + (step + 1) / steps) / warm)
    over = (before + step / steps - warm) / (rounds - warm)
    if settings.schedule == "linear":
        value *= 1 - over
    elif settings.schedule == "cosine":
        value *= (1 + math.cos(math.pi * over)) / 2
    return value
