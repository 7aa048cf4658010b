"""A Flower app with peft and the two lines: only adapters travel, zero-initialized factors are followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from tests.apps import lazily, peft_app
from tests.apps.local_grid import LocalGrid

from fedpress import Downlink, SparseFed, compress
from fedpress.compression.encoders import recipes
from fedpress.compression.tensors.layout import Layout

peft = lazily.loaded("peft")
pytestmark = lazily.NEEDS_TEXT_MODELS

CLIENTS, ROUNDS = 4, 12


def run(grid: LocalGrid, strategy: Strategy, rounds: int = ROUNDS) -> ArrayRecord:
    initial = ArrayRecord(peft.get_peft_model_state_dict(peft_app.get_model()))
    return strategy.start(grid, initial_arrays=initial, num_rounds=rounds).arrays


def sparse(**options: Any) -> SparseFed:
    return SparseFed(fraction_evaluate=0.0, downlink=Downlink(density=0.2), **options)


@pytest.mark.long
def test_two_lines_send_a_fraction_of_the_adapters_and_none_of_the_base() -> None:
    dense = LocalGrid(peft_app.client_app(), CLIENTS)
    expected = peft_app.accuracy(run(dense, FedAvg(fraction_evaluate=0.0)))
    grid = LocalGrid(peft_app.client_app([compress(recipes.default(density=0.1))]), CLIENTS)
    strategy = sparse()
    arrays = run(grid, strategy)
    names = list(arrays)
    assert names and all("lora_" in name or "classifier" in name for name in names)
    assert all(name.startswith("base_model.model.") and ".default" not in name for name in names)
    assert expected > 0.75 and peft_app.accuracy(arrays) > 0.7
    base = sum(4 * tensor.numel() for tensor in peft_app.base().state_dict().values())
    assert grid.passed["up"] + grid.passed["down"] < base  # of all rounds and clients, the first copies included
    assert grid.passed["up"] * 5 < dense.passed["up"]


def test_factors_that_begin_as_zeros_are_followed_by_what_clients_hold() -> None:
    """B of LoRA is zero at first: no size tells how fine its grid must be, and it must not stay zero."""
    strategy = sparse()
    app = peft_app.client_app([compress(recipes.default(density=0.2))])
    arrays = run(LocalGrid(app, CLIENTS), strategy, rounds=4)
    held = {name: array.numpy() for name, array in arrays.items()}
    second = [name for name in held if "lora_B" in name]
    assert len(second) == 4 and all(np.any(held[name]) for name in second)
    assert all(np.abs(held[name]).max() < 1 for name in second)


def test_a_client_with_adapters_of_another_rank_is_told_so_and_costs_nobody_else() -> None:
    def layout(context: Any) -> Layout:
        model = peft_app.get_model(8 if context.node_config["partition-id"] == 1 else 4)
        return Layout.of_arrays(
            {name: tensor.numpy() for name, tensor in peft.get_peft_model_state_dict(model).items()}
        )

    mod = compress(recipes.default(density=0.2), layout=layout)
    strategy = sparse()
    run(LocalGrid(peft_app.client_app([mod], ranks=(4, 8, 4, 4)), CLIENTS), strategy, rounds=2)
    assert strategy.refusals and all("adapter of rank 4, expected rank 8" in r.detail for r in strategy.refusals)
    assert {refusal.node for refusal in strategy.refusals} == {2}


def test_an_app_whose_model_has_another_rank_fails_alone() -> None:
    """The app's own error names the sizes; the three others make the model."""
    mod = compress(recipes.default(density=0.2))
    strategy = sparse()
    run(LocalGrid(peft_app.client_app([mod], ranks=(4, 8, 4, 4)), CLIENTS), strategy, rounds=2)
    assert {refusal.node for refusal in strategy.refusals} == {2}
    assert all("size mismatch" in refusal.detail for refusal in strategy.refusals)
