"""The search on real data: within the budget, the same twice, chosen by validation data and never by test data."""

import math
from typing import Any

import pytest
import torch
from tests.apps.stacked import Residual
from tests.apps.texts import Texts
from torch import nn

from fedpress.compression.models import architecture
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.step import CandidateResult, Materials, SearchProgress, Student
from fedpress.compression.models.students import pipeline, search
from fedpress.compression.models.students.initial_student import UnknownArchitecture
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import Examples, Splits
from fedpress.simulations.studies.distillation import train
from fedpress.simulations.tasks.digits import Digits

BUDGET = Budget(bundle_bytes=10_000)


class Unread:
    """Test data that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"test data are read: {name}")


class Blind(Digits):
    def data(self) -> Splits:
        return super().data()._replace(test=Unread())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return train(Digits(), Digits().data().train, 6)


def look(teacher: nn.Module, steps: list[SearchProgress], **changes: Any) -> search.SearchResult:
    options: dict[str, Any] = {"budget": BUDGET, "settings": Search(candidates=6, finalists=3), "seed": 1} | changes
    return search.search(
        teacher, Blind(), distillation=Distillation(epochs=6), progress=steps.append, **options
    )  # fmt: skip


def test_the_best_within_the_budget_by_validation_data(teacher: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    steps: list[SearchProgress] = []
    found, again = look(teacher, steps), look(teacher, [])

    assert found.candidates == again.candidates
    assert all(torch.equal(a, b) for a, b in zip(found.student.parameters(), again.student.parameters(), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    chosen, *others = found.candidates
    assert chosen.chosen and not any(other.chosen for other in others)
    assert found.architecture is None and structural.layers_of(found.student, torch.zeros(1, 1, 8, 8)) == chosen.widths
    assert all(0.75 * 10_000 < candidate.cost <= 10_000 for candidate in found.candidates)
    finalists = [candidate for candidate in found.candidates if candidate.epochs]
    assert len(finalists) == 3 and sum(candidate.uniform for candidate in finalists) == 1
    longest = [candidate for candidate in finalists if candidate.epochs == chosen.epochs]
    assert chosen.accuracy == max(candidate.accuracy or 0.0 for candidate in longest) > 0.5
    assert all(candidate.accuracy is None and not candidate.uniform for candidate in found.candidates[3:])
    assert [step.done for step in steps] == list(range(len(steps))) and steps[-1].done < steps[-1].total


def test_other_architectures_take_part(teacher: nn.Module) -> None:
    found = look(teacher, [], settings=Search(candidates=4, finalists=2, architectures=("mlp",)))
    assert {candidate.start for candidate in found.candidates if candidate.epochs} == {search.PRUNED, "mlp"}
    assert found.architecture == (None if found.candidates[0].start == search.PRUNED else "mlp")
    with pytest.raises(UnknownArchitecture, match="no student 'mpl'"):
        look(teacher, [], settings=Search(architectures=("mpl",)))


def test_a_budget_that_cannot_be_met_is_refused(teacher: nn.Module) -> None:
    with pytest.raises(structural.BudgetError, match="within 9 FLOPs a forward pass is impossible"):
        look(teacher, [], budget=Budget(flops=9))


def test_models_with_blocks_may_have_fewer() -> None:
    model = nn.Sequential(nn.Sequential(*(Residual(8) for _ in range(5))), nn.Linear(8, 2))
    found = search.starts(model, Digits(), seed=1)
    depths = {name: len(start[0]) for name, start in found.items()}  # type: ignore[index, arg-type]
    assert depths == {search.PRUNED: 5, "every second block": 3, "every third block": 2}


def test_a_fresh_architecture_has_the_weights_of_its_seed() -> None:
    made = [search.starts(nn.Linear(1, 1), Digits(), ["mlp"], seed=seed)["mlp"] for seed in (1, 1, 2)]
    weights = [next(iter(architecture.tensors(model).values())) for model in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def a_candidate(start: str, score: float, uniform: bool = False) -> CandidateResult:
    return CandidateResult(start, {}, 1, 1.0, score, uniform=uniform)


def test_starts_take_turns_among_the_finalists_and_equal_widths_come_first() -> None:
    pool = [a_candidate("a", 1, True), a_candidate("a", 9), a_candidate("a", 5), a_candidate("b", 2, True)]
    assert search.choose_finalists(pool, 3) == [0, 3, 1]
    assert search.choose_finalists(pool, 9) == [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("count", "epochs", "rungs"),
    [(8, 40, [(8, 5), (4, 10), (2, 20)]), (3, 6, [(3, 2)]), (8, 2, [(8, 1), (4, 1), (2, 1)]), (1, 10, [(1, 5)])],
)
def test_half_of_the_finalists_go_on_for_twice_as_long(count: int, epochs: int, rungs: list[tuple[int, int]]) -> None:
    assert search.halving_rungs(count, epochs) == rungs


def test_scores_say_what_their_papers_say() -> None:
    batch = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [2.0, -2.0]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
        model[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    answers = teachers.logits(model, batch)
    # Each path's product of magnitudes, 1 * 3 and 2 * 1, counts once for each of the two layers.
    assert search.synflow(model, batch, answers) == pytest.approx(math.log(2 * (3 + 2)))
    assert search.agreement(model, batch, answers) == search.gradient_norm(model, batch, answers) == 0
    # The first and third example switch alike, so the matrix is singular; without them it is that of two.
    assert search.naswot(model, batch, answers) == -math.inf
    assert search.naswot(model, batch[:2], answers[:2]) == pytest.approx(math.log(2 * 2))
    assert search.naswot(nn.Linear(2, 2), batch, answers) == -math.inf


def test_the_parts_of_a_task_are_what_is_meant() -> None:
    assert isinstance(Digits().data().test, Examples)  # so that `Unread` stands in for something that is read


def test_rows_of_unused_tokens_go_before_a_search() -> None:
    task = Texts(source="memory")
    model, inputs = task.model(), {name: part % 9 for name, part in task.data().proxy.inputs.items()}
    step = pipeline.initial(
        Budget(parameters=0.5), search=Search(candidates=2, finalists=1), pruning=Pruning(vocabulary="used"),
        distillation=Distillation(epochs=1),
    )  # fmt: skip
    materials = Materials(model, task, inputs, None, teachers.of(model, 1), seed=0)
    made = step(Student(model), materials)
    most = 0.5 * structural.parameters_of(model)  # of the whole, rows included
    assert 0.9 * most < structural.parameters_of(made.model) <= most
    assert len(made.model.get_submodule("embedding").weight) == len(inputs["ids"].unique()) < 12
