"""Inputs made up from a teacher: in range, reproducible, nearer to what it knows, and better than noise."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation.data_free import DataFreeError, synthesize
from fedpress.compression.models.distillation.distill import distill, fit
from fedpress.compression.models.distillation.settings import RECIPES, DataFree, Distillation, LearningData
from fedpress.compression.models.pruning.structural import prune_to
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks.digits import Digits

SHAPE = (1, 6, 6)
QUICK = {"examples": 30, "steps": 20, "batch_size": 15}


def model(width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16 * width, 3))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A model whose batch norm has seen images that are dark but for a bright square."""
    made = model()
    images = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.1
    images[:, :, :3, :3] += 0.8
    for _ in range(40):
        made(images)
    return made.eval()


def settings(recipe: str, **changes: object) -> DataFree:
    return dataclasses.replace(RECIPES[recipe], **QUICK | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", RECIPES)
def test_inputs_are_in_range_reproducible_and_leave_the_models_alone(teacher: nn.Module, recipe: str) -> None:
    student = model(2, seed=1)
    before = [tensor.clone() for m in (teacher, student) for tensor in m.state_dict().values()]
    generator = torch.random.get_rng_state()

    def made(seed: int) -> Tensor:
        return synthesize(teacher, SHAPE, settings(recipe, low=-1.0, high=3.0), student=student, seed=seed)

    first = made(1)
    assert first.shape == (30, *SHAPE) and first.dtype == torch.float32 and not first.requires_grad
    assert first.min() >= -1 and first.max() <= 3
    assert torch.equal(first, made(1)) and not torch.equal(first, made(2))
    after = [tensor for m in (teacher, student) for tensor in m.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(generator, torch.random.get_rng_state()) and student.training and not teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_statistics_come_nearer_to_those_of_training(teacher: nn.Module) -> None:
    norm = teacher[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None

    def distance(images: Tensor) -> float:
        with torch.no_grad():
            mean = teacher[0](images).mean(dim=(0, 2, 3))  # type: ignore[index]
        return float((mean - norm.running_mean).norm())

    made = synthesize(teacher, SHAPE, settings("deep-inversion", certainty=0.0, steps=100), seed=0)
    assert distance(made) < 0.2 * distance(torch.rand(30, *SHAPE))


def test_every_class_is_asked_for_alike(teacher: nn.Module) -> None:
    made = synthesize(teacher, SHAPE, settings("deep-inversion", statistics=0.0, variation=0.0, steps=100), seed=0)
    with torch.no_grad():
        assert torch.bincount(teacher(made).argmax(1), minlength=3).tolist() == [10, 10, 10]


def test_inputs_are_made_on_which_student_and_teacher_differ(teacher: nn.Module) -> None:
    student = model(2, seed=1).eval()

    def gap(images: Tensor) -> float:
        with torch.no_grad():
            return float((teacher(images) - student(images)).abs().mean())

    # The student stands still where the inputs themselves are optimized, so that the gain is seen alone.
    fixed = settings("dfad", optimize="inputs", learning_rate=0.1, steps=60)
    assert gap(synthesize(teacher, SHAPE, fixed, student=student, seed=0)) > 1.2 * gap(torch.rand(30, *SHAPE))


def test_vectors_have_a_generator_too() -> None:
    torch.manual_seed(0)
    made = synthesize(nn.Linear(5, 3), (5,), settings("dafl", examples=70), seed=0)
    assert made.shape == (70, 5)


def test_a_batch_smaller_than_what_a_step_hands_over(teacher: nn.Module) -> None:
    assert len(synthesize(teacher, SHAPE, settings("dafl", examples=100, steps=2), seed=0)) == 100


def test_what_cannot_be_made_is_refused(teacher: nn.Module) -> None:
    with pytest.raises(DataFreeError, match=r"no batch norm .* choose a generator \(dafl or dfad\)"):
        synthesize(nn.Linear(5, 3), (5,), settings("deep-inversion"), seed=0)
    with pytest.raises(DataFreeError, match="disagreement is with a student, got none"):
        synthesize(teacher, SHAPE, settings("dfad"), seed=0)
    with pytest.raises(DataFreeError, match=r"answers \(1, 6, 6\) an input, expected one logit a class"):
        synthesize(nn.Sequential(nn.Unflatten(-1, (6, 1))), (6, 6), settings("dafl"), seed=0)
    with pytest.raises(DataFreeError, match="takes no numbers of shape .* for images and vectors"):
        synthesize(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2)), (4,), settings("dafl"), seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimize": "pixels"}, "optimize: got .*, expected 'inputs' or 'generator'"),
        ({"batch_size": 1}, "batch_size: got .*, expected greater than or equal to 2"),
        ({"steps": 0}, "steps: got .*, expected greater than or equal to 1"),
        ({"learning_rate": 0.0}, "learning_rate: got .*, expected greater than 0"),
        ({"low": 1.0}, "low must be below high, got 1.0 and 1.0"),
        ({"balance": -1.0}, "balance: got .*, expected greater than or equal to 0"),
        ({"certainty": 0.0, "statistics": 0.0, "variation": 0.0}, "must be above 0, got 0 for all"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFree(**wrong)  # type: ignore[arg-type]


def test_digits_are_learnt_without_having_seen_one() -> None:
    """A student of made-up inputs beats one of noise, and the pruned model that both start from."""
    task = Digits(model="cnn-bn")
    splits = task.data()
    with reproducible(0) as generator:
        teacher = task.model().train()
        plan = Distillation(epochs=4)
        count = len(splits.train.targets)
        fit(
            teacher.parameters(),
            lambda: torch.split(torch.randperm(count, generator=generator), 32),
            lambda batch: task.loss(teacher(splits.train.inputs[batch]), splits.train.targets[batch]),
            plan,
            steps=4 * -(-count // 32),
        )
    start = prune_to(teacher, splits.proxy.inputs[:1], 20_000)
    recipe = dataclasses.replace(RECIPES["deep-inversion"], examples=100, steps=60)
    made = synthesize(teacher, (1, 8, 8), recipe, seed=0)
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def accuracy(inputs: Tensor) -> float:
        taught = distill(teacher, start, inputs, Distillation(epochs=20), seed=0)
        return evaluate(taught, task, splits.test).accuracy

    assert accuracy(made) > max(accuracy(noise), evaluate(start, task, splits.test).accuracy) + 0.05


def test_a_recipe_is_completed_by_what_differs() -> None:
    assert LearningData(data_free="dafl").data_free == RECIPES["dafl"]  # type: ignore[arg-type]
    shorter = LearningData(data_free={"recipe": "dafl", "steps": 7})  # type: ignore[arg-type]
    assert shorter.data_free == dataclasses.replace(RECIPES["dafl"], steps=7)
    with pytest.raises(ValueError, match="recipe: got 'dall-e', expected deep-inversion, dafl, dfad"):
        LearningData(data_free="dall-e")  # type: ignore[arg-type]


def test_recipes_are_those_of_the_papers() -> None:
    assert {name: recipe.optimize for name, recipe in RECIPES.items()} == {
        "deep-inversion": "inputs",
        "dafl": "generator",
        "dfad": "generator",
    }
