"""Settings of local training: passes or steps, never both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client.settings import Training

SIZES = st.integers(1, 500)


@given(st.integers(1, 5), SIZES, SIZES)
def test_passes_over_the_examples_see_each_of_them_as_often(epochs: int, batch_size: int, count: int) -> None:
    training = Training(epochs=epochs, batch_size=batch_size)
    assert training.examples_seen(count) == epochs * count


@given(st.integers(1, 50), SIZES, SIZES)
def test_steps_do_not_depend_on_the_number_of_examples(steps: int, batch_size: int, count: int) -> None:
    training = Training(steps=steps, batch_size=batch_size)
    assert training.examples_seen(count) == steps * batch_size


def test_without_either_there_is_one_pass_and_both_are_refused() -> None:
    assert (Training().epochs, Training().steps) == (1, None)
    with pytest.raises(ValueError, match="epochs and steps: give one"):
        Training(epochs=1, steps=1)


@pytest.mark.parametrize(
    ("key", "bad"),
    [("batch_size", 0), ("learning_rate", 0.0), ("momentum", 1.0), ("proximal_mu", -1.0), ("device", "tpu")],
)
def test_values_out_of_range_name_their_key(key: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"Training: {key}: got"):
        Training(**{key: bad})  # type: ignore[arg-type]
