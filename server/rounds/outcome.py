"""Outcome of a run: whether it has failed, and the reason.

A run has failed if three rounds in a row bring no usable reply, wherever they are; if none of its rounds brings one,
however few it has; or if a model of it, or the loss of one, is not finite. A deployment asks a round again that nobody
has answered (`SparseFed.run`, `on_silence`), as devices may be offline; such a round is not over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.compression.tensors.layout import is_finite
from fedpress.server.rounds.accounting import UNANSWERED, Refusal, RoundSummary

if TYPE_CHECKING:
    from fedpress.server.rounds.federation import Federation

HOPELESS_ROUNDS = 3
"""Rounds in a row without a usable reply after which a run has failed."""


class RunFailed(FedpressError):
    """A run has failed: no reply could be used, or the model is not finite. Its last checkpoint is left as it is."""

    exit_code = 1


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


class OutcomeState(NamedTuple):
    """State of an `Outcome`: the last rounds before the checkpoint's, none of which brought a usable reply."""

    useless: list[int]


class Outcome:
    """Judge of a run, round after round; a part of its checkpoints.

    A run that has failed and is tried again has `HOPELESS_ROUNDS` more rounds, but its last round is judged with those
    before.

    Args:
        rounds: Number of rounds that the run will have.
        federations: Federation of every model that is trained, by name; the global model's is empty.
    """

    def __init__(self, rounds: int, federations: Mapping[str, Federation]) -> None:
        self._rounds = rounds
        self._federations = federations
        self._useless: list[int] = []  # the last rounds, none of which brought a usable reply
        self._excused = 0  # those of them for which the run has failed before

    def after(self, summary: RoundSummary, losses: Mapping[str, float] = MappingProxyType({})) -> None:
        """Judge the run after a round; after the last, also by its models, and by all rounds.

        Args:
            summary: Figures of the round.
            losses: Loss of each model that was evaluated after it, by the name of its federation.

        Raises:
            RunFailed: The run has failed; the text says why.
        """
        if summary.replies:
            self._useless, self._excused = [], 0
        elif _asked(summary):
            self._useless.append(summary.round)
        last = summary.round >= self._rounds
        if len(self._useless) - (0 if last else self._excused) >= HOPELESS_ROUNDS:
            which = f"{self._useless[0]} to {summary.round}"
            raise RunFailed(
                f"{len(self._useless)} rounds in a row, {which}, brought no usable reply:"
                f" {described(self._refusals(self._useless[0]))}"
            )
        if not last:
            return
        federations = self._federations.values()
        if _asked(summary) and not any(federation.orders.tickets.accepted for federation in federations):
            raise RunFailed(
                f"none of the {self._rounds} round(s) brought a usable reply: {described(self._refusals(1))}"
            )
        for name, federation in self._federations.items():
            model = f"the model of tier {name!r}" if name else "the model"
            for bad in _not_finite(federation):
                raise RunFailed(f"{model} is not finite after the last round: {bad}")
            if not math.isfinite(losses.get(name, 0.0)):
                refusals = self._refusals(1)
                raise RunFailed(
                    f"the loss of {model} is {losses[name]} after the last round; did training diverge? A smaller"
                    " learning rate, on the clients or on the server, may help"
                    + (f". Replies: {described(refusals)}" if refusals else "")
                )

    def _refusals(self, first: int) -> list[Refusal]:
        """Return the refusals of all models from a round on, in the order of the rounds."""
        all_of_them = [r for federation in self._federations.values() for r in federation.accounting.refusals]
        return sorted((r for r in all_of_them if r.round >= first), key=lambda refusal: (refusal.round, refusal.node))

    def state(self) -> OutcomeState:
        """Return the state."""
        return OutcomeState(list(self._useless))

    def restore(self, state: OutcomeState) -> None:
        """Take up a state; where the run had failed, or was about to, these rounds do not count again."""
        self._useless = list(state.useless)
        with_checkpoint = len(self._useless) + 1  # the round of the checkpoint is judged once more
        self._excused = with_checkpoint if with_checkpoint >= HOPELESS_ROUNDS else 0


def _asked(summary: RoundSummary) -> bool:
    """Return whether a round had orders."""
    return summary.train is not None or any(part.train is not None for part in summary.tiers.values())


def _not_finite(federation: Federation) -> Iterable[str]:
    """Yield a text for each part of a model that holds NaN or infinity; buffers may, if the model came with them."""
    if not federation.started:
        return
    model = federation.model
    if not is_finite(model.master):
        yield "weights of the server hold NaN or infinity"
    held = records.Arrays(model.published)
    for spec in model.layout.parameters:
        if spec.dtype != "bfloat16" and not np.isfinite(held[spec.name]).all():
            yield f"{spec.name!r}, as clients hold it, has NaN or infinity"
