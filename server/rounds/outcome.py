"""Outcome of a run: whether it has failed, and the reason.

A run has failed if three rounds in a row bring no usable reply, wherever they are; if none of its rounds brings one,
however few it has; or if a model of it, or the loss of one, is not finite. A deployment may be `patient`: rounds that
nobody answers do not count there, as devices may be offline.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.server.rounds.accounting import Refusal, RoundSummary

if TYPE_CHECKING:
    from fedpress.server.rounds.federation import Federation

HOPELESS_ROUNDS = 3
"""Rounds in a row without a usable reply after which a run has failed."""
UNANSWERED = frozenset({"late", "unreachable", "restart"})
"""Reasons of refusals for which no client has answered."""


class RunFailed(FedpressError):
    """A run has failed: no reply could be used, or the model is not finite. Its last checkpoint is left as it is."""

    exit_code = 1


def unanswered(summary: RoundSummary) -> bool:
    """Return whether a round had orders, and nobody answered one."""
    return _asked(summary) and not summary.replies and all(r.reason in UNANSWERED for r in summary.refusals)


def described(refusals: Sequence[Refusal]) -> str:
    """Return how many replies were refused for which reasons, and the first error that a client has sent.

    >>> described([Refusal(4, 7, "late", "no reply"), Refusal(4, 9, "client error", "the update holds NaN")])
    '2 refused (1 late, 1 client error); the first error, of node 9 in round 4: the update holds NaN'
    >>> described([])
    'no reply at all'
    """
    if not refusals:
        return "no reply at all"
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in refusals).items())
    first = next((refusal for refusal in refusals if refusal.reason not in UNANSWERED), None)
    if first is None:
        return f"{len(refusals)} refused ({counts})"
    return (
        f"{len(refusals)} refused ({counts}); the first error, of node {first.node} in round {first.round}:"
        f" {first.detail}"
    )


class Outcome:
    """Judge of a run, round after round.

    Args:
        rounds: Number of rounds that the run will have.
        federations: Federation of every model that is trained, by name; the global model's is empty.
        patient: Whether rounds that nobody answers do not count.
    """

    def __init__(self, rounds: int, federations: Mapping[str, Federation], *, patient: bool = False) -> None:
        self._rounds = rounds
        self._federations = federations
        self._patient = patient
        self._useless: list[RoundSummary] = []  # the last rounds, none of which brought a usable reply

    def after(self, summary: RoundSummary, losses: Mapping[str, float] = MappingProxyType({})) -> None:
        """Judge the run after a round; after the last, also by its models, and by all rounds.

        Args:
            summary: Figures of the round.
            losses: Loss of each model that was evaluated after it, by the name of its federation.

        Raises:
            RunFailed: The run has failed; the text says why.
        """
        if summary.replies:
            self._useless = []
        elif _asked(summary) and not (self._patient and unanswered(summary)):
            self._useless.append(summary)
        if len(self._useless) >= HOPELESS_ROUNDS:
            which = f"{self._useless[0].round} to {summary.round}"
            refusals = [refusal for useless in self._useless for refusal in useless.refusals]
            raise RunFailed(
                f"{len(self._useless)} rounds in a row, {which}, brought no usable reply: {described(refusals)}"
            )
        if summary.round < self._rounds:
            return
        federations = self._federations.values()
        if _asked(summary) and not any(federation.orders.tickets.accepted for federation in federations):
            refusals = [refusal for federation in federations for refusal in federation.accounting.refusals]
            refusals.sort(key=lambda refusal: refusal.round)
            raise RunFailed(f"none of the {self._rounds} round(s) brought a usable reply: {described(refusals)}")
        for name, federation in self._federations.items():
            model = f"the model of tier {name!r}" if name else "the model"
            for bad in _not_finite(federation):
                raise RunFailed(f"{model} is not finite after the last round: {bad}")
            if not math.isfinite(losses.get(name, 0.0)):
                raise RunFailed(
                    f"the loss of {model} is {losses[name]} after the last round; did training diverge? A smaller"
                    " learning rate, on the clients or on the server, may help"
                )


def _asked(summary: RoundSummary) -> bool:
    """Return whether a round had orders."""
    return summary.train is not None or any(part.train is not None for part in summary.tiers.values())


def _not_finite(federation: Federation) -> Iterable[str]:
    """Yield a text for each part of a model that holds NaN or infinity; buffers may, if the model came with them."""
    if not federation.started:
        return
    model = federation.model
    if not np.isfinite(model.master).all():
        yield "weights of the server hold NaN or infinity"
    held = records.to_numpy(model.published)
    for spec in model.layout.parameters:
        if spec.dtype != "bfloat16" and not np.isfinite(held[spec.name]).all():
            yield f"{spec.name!r}, as clients hold it, has NaN or infinity"
