"""Settings of quantization that contradict each other, or lie out of range, are refused."""

from typing import Any

import pytest

from fedpress.compression.models.quantization.settings import Quantization


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits: got .*, expected greater than or equal to 2"),
        ({"bits": 16}, "bits: got .*, expected less than or equal to 8"),
        ({"group_size": -1}, "group_size: got .*, expected greater than or equal to 0"),
        ({"rounding": "up"}, "rounding: got .*, expected 'nearest', 'adaround' or 'gptq'"),
        ({"scale": "mse"}, "scale: got .*, expected 'largest' or 'least-squares'"),
        ({"sparsity": 1.0}, "sparsity: got .*, expected less than 1"),
        ({"qat_epochs": -1}, "qat_epochs: got .*, expected greater than or equal to 0"),
        ({"qat_epochs": 3, "rounding": "adaround"}, "so does adaround: set qat_epochs to 0, or rounding to nearest"),
        ({"qat_epochs": 3, "rounding": "gptq"}, "so does gptq"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantization(**settings)
