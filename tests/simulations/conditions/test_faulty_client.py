"""A client that diverges trains from weights that are no numbers; all others train as ever."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedpress.compression.messages import records
from fedpress.simulations.conditions import faulty_client
from fedpress.simulations.conditions.faults import DIVERGES
from fedpress.simulations.engines import _flower


def trained_from(config: dict[str, bool]) -> dict[str, np.ndarray]:
    """Return the arrays that the next layer of the app is given."""
    arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float64), "steps": np.array([7])}
    content = RecordDict({"arrays": records.from_numpy(arrays), "config": ConfigRecord({"server-round": 1})})
    _flower.identify(1, 1, 0)
    given: list[Message] = []

    def train(message: Message, context: Context) -> Message:
        given.append(message)
        return message

    message = Message(content, dst_node_id=1, message_type="train")
    faulty_client.diverge(message, Context(1, 1, config, RecordDict(), {}), train)
    assert list(given[0].content) == ["arrays", "config"]
    return records.to_numpy(given[0].content["arrays"])  # type: ignore[arg-type]


def test_a_client_that_diverges_is_given_no_numbers_in_the_same_types_and_shapes() -> None:
    arrays = trained_from({DIVERGES: True})
    assert np.isnan(arrays["weight"]).all() and np.isnan(arrays["bias"]).all()
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "weight": (np.float32, (2, 3)),
        "bias": (np.float64, (2,)),
        "steps": (np.int64, (1,)),
    }
    assert np.signbit(arrays["weight"]).all()  # the bits are recorded, so they are always the same ones
    assert arrays["steps"].tolist() == [7]  # a count stays one


@pytest.mark.parametrize("config", [{}, {DIVERGES: False}])
def test_any_other_client_is_given_what_was_sent(config: dict[str, bool]) -> None:
    assert trained_from(config)["weight"].tolist() == [[1, 1, 1], [1, 1, 1]]
