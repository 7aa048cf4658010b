"""Settings of quantization that contradict each other, or lie out of range, are refused."""

from typing import Any

import pytest

from fedpress.compression.models.quantization.settings import Quantization


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits\n  Input should be greater than or equal to 2"),
        ({"bits": 16}, "bits\n  Input should be less than or equal to 8"),
        ({"group_size": -1}, "group_size\n  Input should be greater than or equal to 0"),
        ({"rounding": "up"}, "rounding\n  Input should be 'nearest' or 'adaround'"),
        ({"scale": "mse"}, "scale\n  Input should be 'largest' or 'least-squares'"),
        ({"sparsity": 1.0}, "sparsity\n  Input should be less than 1"),
        ({"qat_epochs": -1}, "qat_epochs\n  Input should be greater than or equal to 0"),
        ({"qat_epochs": 3, "rounding": "adaround"}, "rounding to nearest"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantization(**settings)
