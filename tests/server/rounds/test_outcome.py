"""A run that brings nothing, or a model that is not finite, is a failure with a reason."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpress.server.rounds.accounting import Refusal, RoundSummary
from fedpress.server.rounds.federation import Federation
from fedpress.server.rounds.outcome import HOPELESS_ROUNDS, Outcome, RunFailed


def federation(value: float = 1.0) -> Federation:
    made = Federation("outcome")
    made.adopt(ArrayRecord([np.full(3, value, np.float32)]))
    return made


class Run:
    """Rounds of one model, each with usable replies or without, and refusals for a reason."""

    def __init__(self, rounds: int, federation: Federation) -> None:
        self.federation = federation
        self.outcome = Outcome(rounds, {"": federation})

    def round(self, number: int, useful: bool, reason: str = "client error", loss: float = 0.5) -> None:
        refusals = [] if useful else [Refusal(number, 7, reason, f"nothing came of round {number}")]
        self.federation.accounting.refusals += refusals
        if useful:
            self.federation.orders.tickets.accepted[7] = number
        train = MetricRecord({"replies": int(useful)})
        summary = RoundSummary(number, ArrayRecord(), replies=int(useful), refusals=refusals, train=train)
        self.outcome.after(summary, {"": loss})


def failed_in(useful: list[bool], killed_after: int | None = None) -> int | None:
    """Return the round in which a run fails; None: it does not. It may be killed and go on, once."""
    run = Run(len(useful), federation())
    for number, each in enumerate(useful, 1):
        saved = run.outcome.state()  # as a checkpoint does: after the step, before the round is judged
        if number - 1 == killed_after:
            run = Run(len(useful), run.federation)
            run.outcome.restore(saved)
        try:
            run.round(number, each)
        except RunFailed:
            return number
    return None


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 12))
def test_three_useless_rounds_in_a_row_or_nothing_but_useless_ones(useful: list[bool], killed_after: int) -> None:
    in_a_row = [n for n in range(HOPELESS_ROUNDS, len(useful) + 1) if not any(useful[n - HOPELESS_ROUNDS : n])]
    expected = min(in_a_row, default=None if any(useful) else len(useful))
    assert failed_in(useful) == expected
    if killed_after + 1 != expected:  # a kill neither helps nor harms, unless it comes for the very judgment
        assert failed_in(useful, killed_after) == expected


def test_a_run_that_failed_has_three_more_rounds_when_it_is_tried_again() -> None:
    first = Run(9, federation())
    first.round(1, useful=True)
    first.round(2, useful=False)
    first.round(3, useful=False)
    saved = first.outcome.state()
    with pytest.raises(RunFailed, match="3 rounds in a row, 2 to 4, brought no usable reply: 3 refused"):
        first.round(4, useful=False)
    again = Run(9, first.federation)
    again.outcome.restore(saved)
    for number in (4, 5, 6):
        again.round(number, useful=False)
    with pytest.raises(RunFailed, match="6 rounds in a row, 2 to 7"):
        again.round(7, useful=False)
    at_its_end = Run(4, first.federation)
    at_its_end.outcome.restore(saved)
    with pytest.raises(RunFailed, match="3 rounds in a row, 2 to 4"):  # nothing new may come of it
        at_its_end.round(4, useful=False)


def test_the_reason_has_the_first_error_of_a_client_not_what_nobody_answered() -> None:
    run = Run(2, federation())
    run.round(1, useful=False, reason="late")
    expected = (
        r"none of the 2 round\(s\) brought a usable reply: 2 refused \(1 late, 1 undecodable\);"
        " the first error, of node 7 in round 2: nothing came of round 2"
    )
    with pytest.raises(RunFailed, match=expected):
        run.round(2, useful=False, reason="undecodable")


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_fails_at_the_end_only(loss: float) -> None:
    run = Run(2, federation())
    run.round(1, useful=True, loss=loss)
    with pytest.raises(RunFailed, match=f"the loss of the model is {loss} after the last round"):
        run.round(2, useful=True, loss=loss)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_fail_at_the_end(value: float) -> None:
    with pytest.raises(RunFailed, match="the model is not finite after the last round"):
        Run(1, federation(value)).round(1, useful=True)


def test_rounds_without_orders_are_no_failure() -> None:
    run = Run(5, federation())
    for number in range(1, 6):  # `fraction_train=0`: nodes evaluate only
        run.outcome.after(RoundSummary(number, ArrayRecord(), train=None))
