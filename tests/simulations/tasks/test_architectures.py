"""Architectures by name: as a task's model, as students, with views of the image; the default model is what it was."""

import hashlib

import pytest
import torch
from torch import nn

from fedpress.compression.models.pruning import structural
from fedpress.simulations.tasks import architectures, digits, fashion_mnist, registry, text
from fedpress.simulations.tasks.registry import TaskError

TASKS = {
    "digits": (digits, torch.rand(2, 1, 8, 8), (2, 10)),
    "fashion-mnist": (fashion_mnist, torch.rand(2, 1, 28, 28), (2, 10)),
    "text": (text, torch.zeros(2, 64, dtype=torch.int64), (2, 64, 49)),
}


@pytest.mark.parametrize("name", TASKS)
def test_each_architecture_is_a_model_and_a_student(name: str) -> None:
    module, inputs, answer = TASKS[name]
    students = registry.create(name).students()
    assert list(students) == list(module.MODELS)
    for architecture, make in students.items():
        torch.manual_seed(1)
        model = registry.create(name, {"model": architecture}).model()
        torch.manual_seed(1)
        student = make()
        assert model(inputs).shape == student(inputs).shape == answer
        pairs = zip(model.parameters(), student.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("name", "parameters"), [("digits", 105_226), ("fashion-mnist", 582_026), ("text", 311_121)])
def test_the_default_is_the_first(name: str, parameters: int) -> None:
    task = registry.create(name)
    assert structural.parameters_of(task.model()) == parameters
    assert structural.parameters_of(next(iter(task.students().values()))()) == parameters


def test_the_weights_that_a_seed_gives_are_those_of_earlier_versions() -> None:
    torch.manual_seed(3)
    state = registry.create("digits").model().state_dict()
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
    torch.manual_seed(3)
    plain = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    ).state_dict()
    assert list(state) == list(plain)
    assert digest == hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in plain.values())).hexdigest()


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_architecture_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match=r"task\.model: got 'resnet', expected one of "):
        registry.create(name, {"model": "resnet"})


def test_batch_norm_stands_behind_each_convolution() -> None:
    kinds = [type(layer).__name__ for layer in digits.MODELS["cnn-bn"]()]
    assert kinds.count("BatchNorm2d") == kinds.count("Conv2d") == 2
    assert all(kinds[index + 1] == "BatchNorm2d" for index, kind in enumerate(kinds) if kind == "Conv2d")


def test_students_with_a_view_see_nothing_else() -> None:
    images = torch.rand(3, 1, 28, 28)
    hidden = {
        "mlp-left-half": lambda x: torch.cat([x[..., :14], 1 - x[..., 14:]], dim=-1),  # the right half is another
        "mlp-coarse": lambda x: x.unflatten(3, (7, 4)).flip(-1).flatten(3),  # pixels change places in a square
        "mlp-edges": lambda x: 1 - x,  # the negative has the same edges
    }
    for name, change in hidden.items():
        model = fashion_mnist.MODELS[name]()
        with torch.no_grad():
            torch.testing.assert_close(model(change(images)), model(images), msg=name)
            assert not torch.allclose(model(images.flip(-1)), model(images))


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    assert structural.parameters_of(architectures.perceptron(5, classes=2)) == 12
