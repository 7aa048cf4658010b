"""The end of a round, and the discount of stale updates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.closing import Closing, Staleness


@given(st.integers(0, 10_000), st.floats(0, 4))
def test_the_discount_is_the_plain_formula(staleness: int, exponent: float) -> None:
    found = Buffered(1, staleness_exponent=exponent).discount(staleness)
    assert found == pytest.approx(1 / (1 + staleness) ** exponent)
    assert 0 < found <= 1
    assert Buffered(1, staleness_exponent=0.0).discount(staleness) == 1


@pytest.mark.parametrize(
    ("settings", "key", "bad"),
    [
        (Closing, "over_selection", -1), (Closing, "min_replies", 0), (Closing, "deadline", 0.0),
        (Staleness, "staleness_exponent", -1.0), (Staleness, "max_staleness", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(settings: type, key: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{settings.__name__}: {key}: got"):
        settings(**{key: bad})
