"""Settings of the optimizer and the downlink: a value of another optimizer is refused."""

import pytest

from fedpress.server.model.settings import DownlinkSettings, OptimizerSettings

TAKEN = {
    "sgd": {"momentum"}, "adam": {"beta1", "beta2", "epsilon"}, "yogi": {"beta1", "beta2", "epsilon"},
    "adagrad": {"epsilon"}, "majority_vote": set(),
}  # fmt: skip
OTHER = {"momentum": 0.5, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.5}


@pytest.mark.parametrize("optimizer", TAKEN)
def test_each_optimizer_takes_its_own_values_only(optimizer: str) -> None:
    for key, value in OTHER.items():
        if key in TAKEN[optimizer]:
            made = OptimizerSettings(optimizer=optimizer, **{key: value})  # type: ignore[arg-type]
            assert getattr(made, key) == value
        else:
            with pytest.raises(ValueError, match=f"{key} has no meaning for optimizer {optimizer}"):
                OptimizerSettings(optimizer=optimizer, **{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "key", "bad"),
    [
        (OptimizerSettings, "learning_rate", 0.0), (OptimizerSettings, "momentum", 1.0),
        (OptimizerSettings, "epsilon", 1e-4), (OptimizerSettings, "ema_decay", 1.0),
        (DownlinkSettings, "density", 0.0), (DownlinkSettings, "levels", 0), (DownlinkSettings, "levels", 256),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(settings: type, key: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{settings.__name__}: {key}: got"):
        settings(**{key: bad})
