"""Settings of a federation: what is out of range is refused, and names its key."""

from typing import Any

import pytest

from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.buffered import Buffered
from fedpress.server.rounds.settings import ModelSettings, Rounds
from fedpress.server.strategies.sparse_fed import SparseFed


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        (SparseFed, {"fraction_train": 1.5}, "fraction_train must be between 0 and 1, and is 1.5"),
        (SparseFed, {"averaging": 1.0}, "averaging must be in"),
        (Rounds, {"over_selection": -1}, r"over_selection: got .*, expected greater than or equal to 0"),
        (Rounds, {"min_replies": 0}, r"min_replies: got .*, expected greater than or equal to 1"),
        (Rounds, {"deadline": 0.0}, r"deadline: got .*, expected greater than 0"),
    ],
)
def test_arguments_out_of_range_are_refused(settings: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**arguments)


def test_a_buffer_has_no_over_selection() -> None:
    with pytest.raises(ValueError, match="over_selection has no meaning"):
        Rounds(schedule=Buffered(2), over_selection=1)


def test_the_prediction_is_that_of_the_downlink() -> None:
    assert ModelSettings().prediction == 0
    assert ModelSettings(downlink=Downlink(0.1, prediction=0.7)).prediction == 0.7
