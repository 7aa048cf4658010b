"""The work of a tier that trains: a smaller model within its budget, the same for whoever makes it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.students.initial_student import Start
from fedpress.compression.models.task import Splits, Task
from fedpress.server.fusion import heterofl
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import tier_workload
from fedpress.simulations.runs.tier_workload import TierWorkload
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.students import Tier
from fedpress.simulations.tasks.digits import Digits


def works(
    teaching: str = "{every: 2}", tier: str = "parameters: 0.05", out: Path | None = None
) -> tuple[Workload, TierWorkload]:
    """Return the work on the global model and that of the tier."""
    tiers = f"students={{tiers: [{{name: phone, {tier}, trains: true}}]}}"
    chosen = scenario.load("digits", [tiers, f"teaching={teaching}"])
    whole = Workload(chosen, out)
    return whole, TierWorkload(whole, chosen.students.tiers[0])


def test_the_model_is_within_the_budget_and_drawn_anew_the_same_every_time() -> None:
    (whole, tier), (_, again) = works(), works()
    assert tier.layout.size <= 0.05 * whole.layout.size and tier.form[0] == architecture.shapes(tier.fresh_model())
    first, second = tier.fresh_model().state_dict(), again.fresh_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert tier.federation != whole.federation and tier.tier == "phone"
    assert tier.task is whole.task  # data are read once


def test_a_tier_has_its_own_density_and_rate_or_those_of_the_scenario() -> None:
    whole, plain = works()
    assert (plain.density, plain.server_learning_rate) == (whole.density, whole.server_learning_rate)
    _, own = works(tier="parameters: 0.05, density: 0.2, server_learning_rate: 0.25")
    assert (own.density, own.server_learning_rate) == (0.2, 0.25)


def test_shapes_are_read_from_the_folder_where_the_server_has_put_them(tmp_path: Path) -> None:
    _, tier = works()
    halved = {name: [max(1, size // 2) for size in shape] for name, shape in tier.form[0].items()}
    folder = RunFolder.create(tmp_path / "run")
    folder.architectures.write_text(json.dumps({"phone": [halved, {"blocks.0.heads": 2}]}))
    _, client = works(out=folder.path)
    assert client.form == ({name: tuple(shape) for name, shape in halved.items()}, {"blocks.0.heads": 2})


def test_a_slice_is_the_leading_part_of_the_global_model() -> None:
    whole, tier = works("{method: heterofl}")
    large, small = whole.fresh_model().state_dict(), tier.fresh_model().state_dict()
    assert tier.layout.size < whole.layout.size
    for name, tensor in small.items():
        assert torch.equal(tensor, large[name][heterofl.leading(tensor.shape)])


@pytest.mark.parametrize(("student", "expected"), [("pruned", None), ("auto", None), ("mlp", "mlp")])
def test_a_student_starts_from_the_global_model_or_an_architecture_of_the_task(
    student: str, expected: str | None
) -> None:
    assert tier_workload.start(Tier(name="a", parameters=5, student=student)) == Start(expected)
    if student != "auto":
        halved = Tier(name="a", parameters=5, student=student, layers=2)
        assert tier_workload.start(halved) == Start(expected, 2)


class Given(Task):
    """A network of which one layer is drawn, one is given and one is an identity."""

    name = "given"

    def model(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
        torch.manual_seed(7)
        nn.init.normal_(net[2].weight)
        nn.init.zeros_(net[2].bias)
        return nn.Sequential(nn.Flatten(), *net)

    def data(self) -> Splits:
        return Digits().data()


def rows_of(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether each row of a matrix is part of a row of another one, in its order."""

    def within(few: list[float], many: list[float]) -> bool:
        left = iter(many)
        return all(any(value == other for other in left) for value in few)

    return all(any(within(row, other) for other in large.tolist()) for row in small.tolist())


def test_a_tier_begins_with_what_pruning_leaves_of_the_given_weights() -> None:
    whole, tier = works(tier="parameters: 0.3")
    whole.task = tier.task = Given()
    large, small = whole.fresh_model(), tier.fresh_model()
    assert tier.layout.size <= 0.3 * whole.layout.size
    assert rows_of(small[3].weight, large[3].weight) and (small[3].bias == 0).all()  # given: as it is
    scale = (large[5].weight.shape[1] / small[5].weight.shape[1]) ** 0.5  # drawn: scaled to fewer inputs
    found, expected = (float(layer.weight.detach().std()) for layer in (small[5], large[5]))
    assert scale > 1.2 and found == pytest.approx(expected * scale, rel=0.15)
    assert rows_of(small[1].weight, large[1].weight)  # drawn, and all of its inputs are still there


@pytest.mark.parametrize("given", [True, False])
def test_weights_of_a_file_are_given_and_are_not_scaled(given: bool, tmp_path: Path) -> None:
    whole, tier = works(tier="parameters: 0.3")
    if given:
        save_file(whole.fresh_model().state_dict(), tmp_path / "init.safetensors")
        whole.scenario = tier.scenario = whole.scenario.model_copy(update={"init": str(tmp_path / "init.safetensors")})
        whole, tier = Workload(whole.scenario), TierWorkload(Workload(whole.scenario), whole.scenario.students.tiers[0])
    large, small = whole.fresh_model().state_dict(), tier.fresh_model().state_dict()
    larger = small["8.weight"].abs().max() > large["8.weight"].abs().max()
    assert larger != given
