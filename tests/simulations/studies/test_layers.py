"""The study of fewer layers runs: each order has its row, and a model that lost nothing agrees with itself."""

import pytest
import torch

from fedpress.simulations.studies import layers


@pytest.mark.long
def test_every_order_of_layers_has_its_row() -> None:
    lines = list(layers.digits(teacher_epochs=1, epochs=1, counts=(2,), seeds=1))
    assert lines[0].startswith("teacher ") and lines[2].split("|")[1].strip() == "influence"
    assert len(lines) == 2 + 6 and all(line.count("%") == 2 for line in lines[2:])


def test_agreement_with_oneself_is_whole() -> None:
    batch = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert layers.agreement(torch.nn.Identity(), batch, batch) == "1.0000 | 1.0000"
    assert layers.agreement(torch.nn.Identity(), batch, batch.flip(1)) < "0.9"
