"""Tiers of devices that train adapters of smaller ranks: leading parts of the global model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.apps import lazily, tiny_encoder
from tests.apps.local_grid import LocalGrid

from fedpress.client import app as client_app
from fedpress.compression.messages import records
from fedpress.server.strategies.tiered_fed import TieredFed
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job, plan_strategy
from fedpress.simulations.runs.initial_weights import InitialWeightsError
from fedpress.simulations.scenario import scenario as scenarios

pytestmark = lazily.NEEDS_TEXT_MODELS


def overrides(folder: Path, student: str = "rank-2") -> list[str]:
    encoder, texts = tiny_encoder.write(folder / "encoder"), tiny_encoder.texts(folder / "texts")
    return [
        f"task={{name: verses, encoder: {encoder}, data_dir: {texts}, length: 12, rank: 4}}",
        f"students={{tiers: [{{name: phone, student: {student}, parameters: 1.0, trains: true}}], steps: [quantize]}}",
        "teaching={method: heterofl}",
        "clients=4",
        "sampling.clients_per_round=4",
        "partition.kind=iid",
        "density=0.5",
        "downlink.density=0.5",
    ]


def test_clients_of_a_smaller_rank_train_the_first_rows_of_a_and_columns_of_b(tmp_path: Path) -> None:
    config = {"workload": job.REFERENCE, "scenario": scenarios.load("digits", overrides(tmp_path)).to_json()}
    work = job.load(config)
    whole, part = (work.models[name].fresh_model().state_dict() for name in ("", "phone"))
    first = next(name for name in whole if "lora_A" in name)
    second = first.replace("lora_A", "lora_B")
    assert whole[first].shape == (4, 32) and torch.equal(part[first], whole[first][:2])
    assert part[second].shape == (32, 2)
    strategy = plan_strategy.strategy(work, RunFolder(tmp_path))
    assert isinstance(strategy, TieredFed)
    grid = LocalGrid(client_app.app, 4, config)
    initial = records.from_numpy({name: tensor.numpy() for name, tensor in whole.items()})
    arrays = records.to_numpy(strategy.start(grid, initial_arrays=initial, num_rounds=2).arrays)
    assert not strategy.refusals and np.any(arrays[second])
    tier = records.to_numpy(strategy.training_tiers[0].federation.model.published)
    np.testing.assert_allclose(tier[second], arrays[second][:, :2], atol=0.02)  # each held model has its own grid
    assert np.array_equal(arrays[next(iter(arrays))], whole[next(iter(arrays))].numpy())  # the encoder stays


def test_a_student_of_other_layers_is_no_slice(tmp_path: Path) -> None:
    scenario = scenarios.load(
        "digits",
        [
            "students.tiers=[{name: phone, student: mlp, parameters: 0.5, trains: true}]",
            "teaching={method: heterofl}",
        ],
    )
    with pytest.raises(InitialWeightsError, match="tier 'phone': .* is no slice of the global model's"):
        job.load({"scenario": scenario.to_json()}).tiers["phone"].fresh_model()
