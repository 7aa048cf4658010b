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


def test_what_belongs_to_another_optimizer_is_refused_and_defaults_are_its_own() -> None:
    assert (Training().rate, Training().velocity_decay, Training().moments) == (0.1, 0.0, 0)
    assert (Training(momentum=0.5).velocity_decay, Training(momentum=0.5).moments) == (0.5, 1)
    adamw, muon = Training(optimizer="adamw"), Training(optimizer="muon")
    assert (adamw.rate, adamw.moments) == (0.001, 2)
    assert (muon.rate, muon.velocity_decay, muon.moments) == (0.001, 0.95, 2)
    with pytest.raises(ValueError, match="momentum: got 0.9, but adamw has beta1"):
        Training(optimizer="adamw", momentum=0.9)
    with pytest.raises(ValueError, match="beta1, beta2 and epsilon: belong to adamw"):
        Training(beta2=0.95)
    assert Training(optimizer="adamw", momentum=0.0).rate == 0.001
