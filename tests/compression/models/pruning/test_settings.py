"""Settings of pruning that contradict each other, or lie out of range, are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.models.pruning.settings import Pruning


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 1.0}, "tolerance: got .*, expected less than 1"),
        ({"granularity": "rows"}, "granularity: got .*, expected 'channels', 'weights' or '2:4'"),
        ({"importance": "size"}, "importance: got .*, expected "),
        ({"ranking": "local"}, "ranking: got .*, expected "),
        ({"schedule": "linear"}, "schedule: got .*, expected "),
        ({"penalty": "l2"}, "penalty: got .*, expected "),
        ({"steps": 2}, "'one_shot' has one step, got 2"),
        ({"schedule": "cubic", "steps": 0}, "steps: got .*, expected greater than or equal to 1"),
        ({"fine_tune_epochs": -1}, "fine_tune_epochs: got .*, expected greater than or equal to 0"),
        ({"penalty_weight": 0.0}, "penalty_weight: got .*, expected greater than 0"),
        ({"ranking": "erk"}, "granularity must be 'weights', got 'channels'"),
        ({"schedule": "lottery"}, "granularity must be 'weights', got 'channels'"),
        ({"granularity": "2:4", "schedule": "cubic", "steps": 2}, "half the weights at once"),
        ({"importance": "sparsegpt"}, "expected granularity 'weights' or '2:4', .* got 'channels' and 'uniform'"),
        ({"importance": "sparsegpt", "granularity": "weights", "ranking": "global"}, "got 'weights' and 'global'"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruning(**settings)


@pytest.mark.parametrize(
    ("removed_fraction", "settings", "message"),
    [
        (0.0, Pruning(), r"in \(0, 1\), got 0.0"),
        (1.0, Pruning(), r"in \(0, 1\), got 1.0"),
        ("auto", Pruning(), "tolerance: missing"),
        (0.6, Pruning(granularity="2:4"), "half the weights: got removed_fraction 0.6"),
    ],
)
def test_parts_that_cannot_be_removed_are_refused(removed_fraction: Any, settings: Pruning, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.check(removed_fraction)


@given(st.just(0.5) | st.floats(0.01, 0.99))
def test_blocks_of_four_lose_half_and_other_weights_any_part(fraction: float) -> None:
    def possible(settings: Pruning) -> bool:
        try:
            settings.check(fraction)
        except ValueError:
            return False
        return True

    assert possible(Pruning()) and possible(Pruning(granularity="2:4")) == (fraction == 0.5)
