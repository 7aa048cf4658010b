"""The study behind the default settings runs and judges by held-out data."""

import pytest

from fedpress.compression.models.distillation.settings import Distillation
from fedpress.simulations.studies import distillation
from fedpress.simulations.studies.distillation import SETUPS, DistillationSetup, variants
from fedpress.simulations.tasks.digits import Digits


def test_more_training_brings_the_student_nearer_to_its_teacher() -> None:
    settings = {"none to speak of": Distillation(epochs=1, learning_rate=1e-9), "some": Distillation(epochs=20)}
    teacher, untaught, taught = rows = list(
        distillation.study(Digits(), DistillationSetup(20, 8_000, settings), seeds=1)
    )
    assert [row.setting for row in rows] == ["teacher", *settings]
    assert teacher.accuracy > 0.85 and taught.agreement > 0.9 > untaught.agreement
    assert taught.accuracy > untaught.accuracy and all(row.seconds > 0 for row in rows)


def test_each_variant_differs_from_the_default_in_one_respect() -> None:
    default, *others = (settings.__dict__ for settings in variants(Distillation()).values())
    assert [sum(default[key] != other[key] for key in default) for other in others] == [1] * len(others)
    assert SETUPS["fashion-mnist"].settings["default"] == Distillation()


@pytest.mark.parametrize("arguments", [[], ["mnist"], ["digits", "more"]])
def test_a_wrong_call_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distillation.main(arguments)
    assert "{digits,fashion-mnist}" in capsys.readouterr().err
