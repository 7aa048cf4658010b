"""Students on real data: within their budgets, near their teacher, the same twice, and the global model untouched."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.encoders import encoder as encoders
from fedpress.compression.errors import NonFiniteError
from fedpress.compression.messages import records
from fedpress.compression.models.bundles import reader, writer
from fedpress.compression.models.distillation import data_free
from fedpress.compression.models.distillation.settings import (
    RECIPES,
    Continuations,
    Distillation,
    LearningData,
)
from fedpress.compression.models.distillation.teachers import TeacherError
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization.quantize import Quantize
from fedpress.compression.models.step import SearchProgress
from fedpress.compression.models.students import pipeline
from fedpress.compression.models.students.initial_student import Start, UnknownArchitecture
from fedpress.compression.models.students.settings import Budget, Search
from fedpress.compression.models.task import IGNORED, Examples, Splits, Task, evaluate
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.server.fusion.client_ensemble import ClientModels, SentUpdate
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.publishing.publish import NoProxyData, PublishedTier, Publisher, PublishError
from fedpress.server.publishing.store import ModelStore
from fedpress.simulations.tasks.digits import Digits
from fedpress.simulations.tasks.fashion_mnist import DEBIAN, FashionMNIST
from fedpress.simulations.tasks.text import Text

FEW = Distillation(epochs=1)


def tier_of(
    name: str, budget: Budget, distillation: Distillation = FEW, onnx: bool = False, **settings: Any
) -> PublishedTier:
    steps = pipeline.standard(budget, distillation=distillation, **settings)
    return PublishedTier(name, (*steps, writer.WriteBundle(onnx)), budget.bundle_bytes)


def two_tiers(distillation: Distillation = FEW) -> list[PublishedTier]:
    return [
        tier_of("phone", Budget(bundle_bytes=20_000), distillation),
        tier_of("sensor", Budget(bundle_bytes=10_000), distillation),
    ]


TIERS = two_tiers()


def trained(task: Task, examples: Examples, epochs: int, learning_rate: float, batch_size: int) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(examples.targets)).split(batch_size):
            optimizer.zero_grad()
            task.loss(model(examples.inputs[batch]), examples.targets[batch]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return trained(Digits(), Digits().data().train, epochs=8, learning_rate=0.1, batch_size=20)


@pytest.mark.long
def test_students_of_digits_are_small_good_and_reproducible(tmp_path: Path, teacher: nn.Module) -> None:
    task, store = Digits(), ModelStore(tmp_path / "one")
    tiers = two_tiers(Distillation(epochs=30))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    generator = torch.random.get_rng_state()

    students = Publisher(task, store, tiers, seed=1).publish(12, teacher)
    again = Publisher(task, ModelStore(tmp_path / "two"), tiers, seed=1).publish(12, teacher)

    assert [student.sha256 for student in students] == [student.sha256 for student in again]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert torch.equal(generator, torch.random.get_rng_state())
    expected = evaluate(teacher, task, task.data().test).accuracy
    float32_bytes = 4 * structural.parameters_of(teacher)
    for tier, student, most in zip(TIERS, students, (20_000, 10_000), strict=True):
        data = store.get(tier.name, 12)
        opened = reader.open_bundle(data)
        assert (student.tier, student.version, student.path) == (tier.name, 12, store.latest(tier.name).path)
        assert (student.bundle_bytes, student.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert student.bundle_bytes <= min(float32_bytes / 20, most)
        assert student.parameters == opened.manifest.parameters
        assert student.teacher_accuracy == expected > 0.9
        assert evaluate(writer.rebuild(opened, task), task, task.data().test).accuracy == student.quantized_accuracy
        assert student.quantized_accuracy >= expected - 0.03
        assert abs(student.quantized_accuracy - student.student_accuracy) < 0.01
        validation = evaluate(writer.rebuild(opened, task), task, task.data().validation).accuracy
        assert opened.manifest.metrics == {"validation_accuracy": pytest.approx(validation, abs=1e-4)}


def test_a_student_that_is_searched_for_is_published_like_any_other(tmp_path: Path, teacher: nn.Module) -> None:
    search = Search(candidates=3, finalists=2)
    tier = tier_of("phone", Budget(flops=60_000), Distillation(epochs=8), search=search)
    told: list[tuple[str, SearchProgress]] = []
    students = [
        Publisher(
            Digits(), ModelStore(tmp_path / name), [tier], seed=1,
            on_search=lambda tier, step: told.append((tier, step)),
        ).publish(3, teacher)[0]
        for name in ("one", "two")
    ]  # fmt: skip
    student, again = students
    assert (student.sha256, student.candidates) == (again.sha256, again.candidates)
    chosen, *others = student.candidates
    assert chosen.chosen and chosen.parameters == student.parameters and others
    assert 0.75 * 60_000 < chosen.cost <= 60_000
    rebuilt = writer.rebuild(reader.open_bundle(student.path.read_bytes()), Digits())
    assert structural.flops_of(rebuilt, Digits().data().proxy.inputs) == chosen.cost
    assert {name for name, _ in told} == {"phone"} and len(told) > 3


class Watched(Digits):
    """Digits whose held-out labels are wrong wherever a student must not look."""

    def __init__(self, hidden: str) -> None:
        self.hidden = hidden

    def data(self) -> Splits:
        splits = super().data()
        part: Examples = getattr(splits, self.hidden)
        return splits._replace(**{self.hidden: part._replace(targets=(part.targets + 1) % 10)})


@pytest.mark.parametrize("hidden", ["proxy", "test", "train"])
def test_students_see_neither_test_nor_training_data_nor_proxy_labels(
    tmp_path: Path, teacher: nn.Module, hidden: str
) -> None:
    made = [
        Publisher(task, ModelStore(tmp_path / str(number)), TIERS[:1]).publish(1, teacher)[0].sha256
        for number, task in enumerate([Digits(), Watched(hidden)])
    ]
    assert made[0] == made[1]


def test_students_see_proxy_labels_if_they_may(tmp_path: Path, teacher: nn.Module) -> None:
    made = [
        Publisher(Digits(), ModelStore(tmp_path / str(labels)), TIERS[:1], LearningData(labels=labels))
        .publish(1, teacher)[0]
        .sha256
        for labels in (False, True)
    ]
    assert made[0] != made[1]


def test_students_learn_from_the_client_models_if_there_are_some(tmp_path: Path, teacher: nn.Module) -> None:
    def made(name: str, **more: Any) -> str:
        return Publisher(Digits(), ModelStore(tmp_path / name), TIERS[:1], **more).publish(1, teacher)[0].sha256

    arrays = {name: tensor.numpy() for name, tensor in teacher.state_dict().items()}
    model = GlobalModel(records.from_numpy(arrays), None, optimizers.sgd())
    payloads = []
    for scale in (-0.5, 0.5):  # of all weights: two models, one unsure and one too sure
        codec = encoders.dense(values.FLOAT32)
        payloads.append(codec.encode(np.float32(scale) * model.master, None, SideInfo(model.layout), 0).payload)
    clients = ClientModels()
    nobody = made("nobody", clients=clients)
    assert nobody == made("global")
    clients.attach(model)
    clients.take([SentUpdate(payload, b"", None, model.version) for payload in payloads])
    assert len({nobody, made("logits", clients=clients), made("sure", clients=clients, combine="confidence")}) == 3


def test_a_bundle_may_hold_a_file_to_run(tmp_path: Path, teacher: nn.Module) -> None:
    onnx_weights = pytest.importorskip("fedpress.compression.models.bundles.onnx_weights")
    onnx_run = pytest.importorskip("fedpress.compression.models.bundles.onnx_runtime")
    tier = tier_of("phone", Budget(parameters=0.05), onnx=True)
    (student,) = Publisher(Digits(), ModelStore(tmp_path), [tier]).publish(1, teacher)
    opened = reader.open_bundle(student.path.read_bytes())
    assert opened.onnx and student.bundle_bytes > len(opened.onnx)
    graph = onnx_weights.filled(opened.onnx, opened.weights)
    inputs = Digits().data().test.inputs
    run = onnx_run.runner(graph)(inputs.numpy()).argmax(axis=1)
    rebuilt = writer.rebuild(opened, Digits())(inputs).argmax(dim=1).numpy()
    assert (run == rebuilt).mean() > 0.9  # its activations are int8, too

    stage = student.stages[-1]
    assert student.onnx_accuracy == stage.accuracy == (run == Digits().data().test.targets.numpy()).mean()
    assert (stage.name, stage.parameters, stage.size_bytes) == ("onnx", student.parameters, len(graph))
    assert student.stages[-2].name == "quantized" and student.stages[-2].size_bytes == student.bundle_bytes
    validation = Digits().data().validation
    accuracy = (onnx_run.runner(graph)(validation.inputs.numpy()).argmax(axis=1) == validation.targets.numpy()).mean()
    assert opened.manifest.metrics["onnx_validation_accuracy"] == pytest.approx(accuracy, abs=1e-4)


class Measured(Digits):
    """Digits whose model leaves torch's operations after its pruned layers."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), Scaled())


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - torch.from_numpy(x.detach().numpy() ** 2)


def test_a_graph_that_would_answer_otherwise_is_found_before_the_first_round(tmp_path: Path) -> None:
    onnx_run = pytest.importorskip("fedpress.compression.models.bundles.onnx_runtime")
    torch.manual_seed(0)
    task, store = Measured(), ModelStore(tmp_path)
    model = task.model()
    Publisher(task, store, [tier_of("phone", Budget(parameters=0.5))]).check(model)  # there is no graph
    publisher = Publisher(task, store, [tier_of("phone", Budget(parameters=0.5), onnx=True)])
    for make in (lambda: publisher.check(model), lambda: publisher.publish(1, model)):
        with pytest.raises(onnx_run.OnnxError, match=r"of 100 inputs otherwise than the model.*NumPy array"):
            make()
    assert store.list() == []


class Chosen(Digits):
    """Digits with a student that ONNX has no operation for."""

    def students(self) -> dict[str, Callable[[], nn.Module]]:
        return {"odd": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Odd(), nn.Linear(16, 10))}


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_the_form_that_is_exported_is_that_of_the_student(tmp_path: Path, teacher: nn.Module) -> None:
    onnx_run = pytest.importorskip("fedpress.compression.models.bundles.onnx_runtime")
    started = tier_of("watch", Budget(parameters=0.02), onnx=True, start=Start("odd"))
    trained_by_clients = PublishedTier("watch", (Quantize(), writer.WriteBundle(onnx=True)), architecture="odd")
    for tier in (started, trained_by_clients):
        with pytest.raises(onnx_run.OnnxError, match="bessel"):
            Publisher(Chosen(), ModelStore(tmp_path), [tier]).check(teacher)


class ByBatch(Digits):
    """Digits with normalization by the batch."""

    def model(self) -> nn.Module:
        norm = nn.BatchNorm1d(32, track_running_stats=False)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), norm, nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize("onnx", [False, True])
def test_a_student_that_answers_one_input_otherwise_than_many_is_refused(tmp_path: Path, onnx: bool) -> None:
    publisher = Publisher(ByBatch(), ModelStore(tmp_path), [tier_of("phone", Budget(parameters=0.5), onnx=onnx)])
    with pytest.raises(PublishError, match=r"one answer at a time: .*'2' \(BatchNorm1d\).*track_running_stats=False"):
        publisher.check(ByBatch().model())


class WithExit(nn.Module):
    """Returns a second output in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        answers = self.layer(x.flatten(1))
        return (answers, answers) if self.training else answers


def test_a_model_that_returns_several_tensors_in_training_is_found_before_the_first_round(tmp_path: Path) -> None:
    model = WithExit()
    generator = torch.random.get_rng_state()
    with pytest.raises(TeacherError, match="returns a tuple"):
        Publisher(Digits(), ModelStore(tmp_path), TIERS).check(model)
    assert torch.equal(generator, torch.random.get_rng_state())


class Padded(Digits):
    """Digits of which half of the labels are missing, in each part."""

    def data(self) -> Splits:
        def without(part: Examples) -> Examples:
            return part._replace(targets=torch.where(torch.arange(len(part.targets)) % 2 == 0, part.targets, IGNORED))

        return Splits(*map(without, super().data()))


def test_students_are_judged_where_there_is_a_target(tmp_path: Path, teacher: nn.Module) -> None:
    """By every figure: in the table, by class, and for what a tolerance is measured by."""
    every_second = Splits(*(part.take(np.arange(0, len(part.targets), 2)) for part in Digits().data()))
    expected = evaluate(teacher, Digits(), every_second.test).accuracy
    pruning = Pruning(schedule="iterative", steps=2, tolerance=0.5, granularity="weights", fine_tune_epochs=0)
    tiers = [
        tier_of("phone", Budget(parameters=0.3)),
        tier_of("watch", Budget(removed_fraction="auto"), pruning=pruning),
    ]
    for student in Publisher(Padded(), ModelStore(tmp_path), tiers).publish(1, teacher):
        assert student.teacher_accuracy == student.stages[0].accuracy == pytest.approx(expected) and expected > 0.9
        rebuilt = writer.rebuild(reader.open_bundle(student.path.read_bytes()), Padded())
        assert student.quantized_accuracy == evaluate(rebuilt, Digits(), every_second.test).accuracy
        assert 0 <= student.stages[-1].worst_class < 10
    assert student.curve[0].accuracy == evaluate(teacher, Digits(), every_second.validation).accuracy


def test_a_budget_that_cannot_be_met_publishes_nothing(tmp_path: Path, teacher: nn.Module) -> None:
    store = ModelStore(tmp_path)
    publisher = Publisher(Digits(), store, [*TIERS, tier_of("grain", Budget(parameters=50))])
    with pytest.raises(structural.BudgetError, match="50 parameters"):
        publisher.check(Digits().model())  # before the first round
    with pytest.raises(structural.BudgetError, match="50 parameters"):
        Publisher(Digits(), store, publisher.tiers[2:]).publish(1, teacher)
    assert store.list() == []


def test_tiers_that_can_be_met_pass_the_check(tmp_path: Path, teacher: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    Publisher(Digits(), ModelStore(tmp_path), TIERS).check(teacher)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


class NoProxy(Digits):
    """Digits that hold out nothing for students."""

    def data(self) -> Splits:
        splits = super().data()
        return splits._replace(proxy=splits.proxy.take(np.array([], dtype=np.int64)))


def test_a_task_without_proxy_data_is_found_by_the_check_which_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(NoProxyData, match=r"'digits' holds out no proxy data.* students.data=\{data_free"):
        Publisher(NoProxy(), ModelStore(tmp_path), TIERS).check(Digits().model())


QUICK = {"examples": 20, "steps": 3, "batch_size": 10}


def test_students_of_a_task_without_proxy_data(tmp_path: Path) -> None:
    task = NoProxy(model="cnn-bn")
    torch.manual_seed(0)
    model = task.model()
    for name, recipe in RECIPES.items():
        data = LearningData(data_free=dataclasses.replace(recipe, **QUICK))  # type: ignore[arg-type]
        publisher = Publisher(task, ModelStore(tmp_path / name), TIERS[:1], data)
        publisher.check(model)
        (student,) = publisher.publish(1, model)
        assert reader.open_bundle(student.path.read_bytes()).manifest.parameters == student.parameters


def test_inputs_that_cannot_be_made_are_found_by_the_check(tmp_path: Path, teacher: nn.Module) -> None:
    data = LearningData(data_free=RECIPES["deep-inversion"])
    publisher = Publisher(NoProxy(), ModelStore(tmp_path), TIERS, data)
    with pytest.raises(data_free.DataFreeError, match="no batch norm"):
        publisher.check(teacher)
    with pytest.raises(ValueError, match="have no labels and are no sequences"):
        LearningData(data_free=RECIPES["dafl"], labels=True)


def test_a_student_of_another_architecture_is_rebuilt_by_name(tmp_path: Path, teacher: nn.Module) -> None:
    tier = tier_of("watch", Budget(parameters=0.02), start=Start("mlp"))
    publisher = Publisher(Digits(), ModelStore(tmp_path), [tier])
    publisher.check(teacher)
    (student,) = publisher.publish(1, teacher)
    opened = reader.open_bundle(student.path.read_bytes())
    assert opened.manifest.architecture == "mlp" and student.parameters <= 0.02 * structural.parameters_of(teacher)
    rebuilt = writer.rebuild(opened, Digits())
    assert evaluate(rebuilt, Digits(), Digits().data().test).accuracy == student.quantized_accuracy
    with pytest.raises(UnknownArchitecture, match="no student 'gru'"):
        tier = tier_of("watch", Budget(parameters=0.5), start=Start("gru"))
        Publisher(Digits(), ModelStore(tmp_path), [tier]).check(teacher)

    class Older(Digits):
        def students(self) -> dict[str, Callable[[], nn.Module]]:
            return {}

    with pytest.raises(writer.DoesNotFit, match="no student architecture 'mlp', it has none"):
        writer.rebuild(opened, Older())


def test_a_student_with_half_the_layers_is_rebuilt_from_its_shapes(tmp_path: Path) -> None:
    task = Digits(model="vit")
    torch.manual_seed(0)
    model = task.model()
    onnx_weights = pytest.importorskip("fedpress.compression.models.bundles.onnx_weights")
    onnx_run = pytest.importorskip("fedpress.compression.models.bundles.onnx_runtime")
    tier = tier_of("watch", Budget(parameters=0.5), onnx=True, start=Start(layers=0.5))
    (student,) = Publisher(task, ModelStore(tmp_path), [tier]).publish(1, model)
    bundle = reader.open_bundle(student.path.read_bytes())
    rebuilt = writer.rebuild(bundle, task)
    assert (len(rebuilt.blocks), len(model.blocks)) == (1, 2)
    assert bundle.onnx is not None
    images = task.data().test.inputs[:64]
    graph = torch.from_numpy(onnx_run.runner(onnx_weights.filled(bundle.onnx, bundle.weights))(images.numpy()))
    assert float((graph.argmax(1) == rebuilt(images).argmax(1)).float().mean()) > 0.8  # int8 of an untrained model


def test_students_of_a_task_of_sequences(tmp_path: Path) -> None:
    """Text has students: of another architecture, on proxy windows and on what the global model writes."""
    books = tmp_path / "books"
    books.mkdir()
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        (books / f"{name}.txt").write_text(" ".join(draw.choice(["in", "the", "beginning", "was"], 1_000)))
    task = Text(str(books), model="gru-small")
    torch.manual_seed(0)
    model = task.model()
    tier = tier_of("watch", Budget(parameters=30_000), start=Start("gru-small"))
    made = []
    for name, continuations in (("prompts", None), ("both", Continuations(prompt=60))):
        publisher = Publisher(task, ModelStore(tmp_path / name), [tier], LearningData(continuations=continuations))
        publisher.check(model)
        made += publisher.publish(1, model)
    assert made[0].sha256 != made[1].sha256
    for student in made:
        rebuilt = writer.rebuild(reader.open_bundle(student.path.read_bytes()), task)
        assert evaluate(rebuilt, task, task.data().test).accuracy == student.quantized_accuracy
    with pytest.raises(ValueError, match="prompt is 64, expected less than the 64 characters"):
        data = LearningData(continuations=Continuations(prompt=64))
        Publisher(task, ModelStore(tmp_path), [tier], data).check(model)


class Echo(Task):
    """The label of each place is its word, two of five have none; logits are (N, classes, L)."""

    name = "echo"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(6, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6), Second())

    def students(self) -> dict[str, Callable[[], nn.Module]]:
        return {"plain": lambda: nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6), Second())}

    def data(self) -> Splits:
        words = torch.randint(6, (400, 5), generator=torch.Generator().manual_seed(0))
        targets = torch.where(torch.arange(5) < 3, words, IGNORED)
        return Splits(*(Examples(*part) for part in zip(words.split(100), targets.split(100), strict=True)))


class Second(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_students_of_sequences_whose_classes_are_second_learn_classes(tmp_path: Path) -> None:
    """A fresh student has all that it knows from the teacher's answers."""
    task = Echo()
    teacher = trained(task, task.data().train, epochs=60, learning_rate=0.5, batch_size=20)
    assert evaluate(teacher, task, task.data().test).accuracy == 1.0
    distillation = Distillation(epochs=40, learning_rate=0.03)
    tier = tier_of("watch", Budget(parameters=150), distillation, start=Start("plain"))
    (student,) = Publisher(task, ModelStore(tmp_path), [tier]).publish(1, teacher)
    assert student.quantized_accuracy > 0.9


def test_a_student_that_diverges_is_not_published(tmp_path: Path, teacher: nn.Module) -> None:
    store = ModelStore(tmp_path)
    diverging = two_tiers(Distillation(learning_rate=1e30, epochs=1))
    with pytest.raises(NonFiniteError, match="Lower the learning rate"):
        Publisher(Digits(), store, diverging).publish(1, teacher)
    assert store.list() == []


class Frozen(nn.Module):
    """A random projection that is not in the state dict, so that no bundle can carry it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(64, 64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.projection


class Projected(Digits):
    def model(self) -> nn.Module:
        return nn.Sequential(Frozen(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_a_model_that_its_state_dict_does_not_hold_is_not_published(tmp_path: Path) -> None:
    task, store = Projected(), ModelStore(tmp_path)
    tier = tier_of("phone", Budget(parameters=0.5))
    with pytest.raises(PublishError, match="answers otherwise once its bundle is opened"):
        Publisher(task, store, [tier]).publish(1, task.model())
    assert store.list() == []


class Wordy(Digits):
    name = "".join(f"{number * 2654435761 % 2**32:08x}" for number in range(500))


def test_steps_that_write_no_bundle_are_refused(tmp_path: Path, teacher: nn.Module) -> None:
    steps = pipeline.standard(Budget(parameters=0.05), distillation=FEW)
    with pytest.raises(PublishError, match="steps of tier 'phone' write no bundle: put writer.WriteBundle"):
        Publisher(Digits(), ModelStore(tmp_path), [PublishedTier("phone", steps)]).publish(1, teacher)
    with pytest.raises(ValueError, match="put quantize.Quantize before writer.WriteBundle"):
        Publisher(Digits(), ModelStore(tmp_path), [PublishedTier("phone", (writer.WriteBundle(),))]).publish(1, teacher)


def test_a_bundle_beyond_its_budget_is_not_published(tmp_path: Path, teacher: nn.Module) -> None:
    """The budget is reserved for weights and an ordinary manifest; this task's name alone is 4,000 letters."""
    store = ModelStore(tmp_path)
    with pytest.raises(PublishError, match="its budget is 5,000"):
        tier = tier_of("phone", Budget(bundle_bytes=5000))
        Publisher(Wordy(), store, [tier]).publish(1, teacher)
    assert store.list() == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist")
def test_students_of_fashion_mnist_lose_at_most_two_points(tmp_path: Path) -> None:
    task = FashionMNIST()
    model = trained(task, task.data().train.take(np.arange(6_000)), epochs=1, learning_rate=0.1, batch_size=20)
    tiers = [
        tier_of("phone", Budget(bundle_bytes=110_000), Distillation(epochs=3)),
        tier_of("sensor", Budget(bundle_bytes=55_000), Distillation(epochs=3)),
    ]
    students = Publisher(task, ModelStore(tmp_path), tiers).publish(1, model)
    for student in students:
        assert student.bundle_bytes <= 4 * 582_026 / 20
        assert student.quantized_accuracy >= student.teacher_accuracy - 0.02 > 0.7


def test_a_student_of_a_partly_trained_model_learns_with_all_its_weights(tmp_path: Path, teacher: nn.Module) -> None:
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    list(frozen.parameters())[-1].requires_grad_(True)
    tier = tier_of("phone", Budget(parameters=0.1))
    both = [
        Publisher(Digits(), ModelStore(tmp_path / name), [tier], seed=1).publish(2, model)[0]
        for name, model in (("whole", teacher), ("part", frozen))
    ]
    assert both[0].sha256 == both[1].sha256
    assert sum(parameter.requires_grad for parameter in frozen.parameters()) == 1
