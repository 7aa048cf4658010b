"""What is borrowed is put back, also after an error: torch's generator, its threads, the modes of a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpress.compression.models.reproducible import evaluating, reproducible


@given(st.integers(0, 2**63 - 1))
def test_a_seed_gives_the_same_draws_of_two_generators(seed: int) -> None:
    draws = []
    for _ in range(2):
        with reproducible(seed) as generator:
            draws.append((torch.rand(3), torch.rand(3, generator=generator)))
    (layers, shuffles), again = draws
    assert torch.equal(layers, again[0]) and torch.equal(shuffles, again[1])
    with reproducible(seed) as generator:
        torch.rand(100)  # what layers draw does not move the shuffles
        assert torch.equal(torch.rand(3, generator=generator), shuffles)


def test_generator_and_threads_are_put_back() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), reproducible(1):
            assert torch.get_num_threads() == 1
            torch.rand(5)
            raise KeyError
        assert torch.get_num_threads() == 2
        assert torch.equal(before, torch.random.get_rng_state())
    finally:
        torch.set_num_threads(threads)


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    model[2].eval()
    inputs = torch.ones(4, 2)
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(inputs), model(inputs)) and not model(inputs).requires_grad
        raise KeyError
    assert model.training and [module.training for module in model] == [True, True, False]
    assert model(inputs).requires_grad
