"""Settings of distillation on the server."""

import pytest

from fedpress.server.fusion.settings import FedDF, Teaching


@pytest.mark.parametrize("settings", [FedDF, Teaching])
def test_a_distillation_has_the_values_of_its_settings(settings: type[FedDF | Teaching]) -> None:
    made = settings(epochs=7, learning_rate=0.5, temperature=3.0)
    learned = made.distillation
    assert (learned.epochs, learned.learning_rate, learned.temperature) == (7, 0.5, 3.0)


def test_the_version_after_a_teaching_step_has_a_density_of_its_own() -> None:
    downlink = Teaching(density=0.25, levels=3).downlink
    assert (downlink.density, downlink.levels, downlink.agreed_initial) == (0.25, 3, False)


@pytest.mark.parametrize(
    ("settings", "key", "bad"),
    [
        (FedDF, "every", 0), (FedDF, "epochs", 0), (FedDF, "temperature", 0.0), (FedDF, "combine", "median"),
        (Teaching, "every", -1), (Teaching, "density", 0.0), (Teaching, "method", "slices"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(settings: type, key: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"{settings.__name__}: {key}: got"):
        settings(**{key: bad})
