"""Evaluation is a mean over examples; splits that leak or do not fit are refused."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apps import texts
from torch import nn

from fedpress.compression.models import task as tasks
from fedpress.compression.models.batch_dependence import BatchDependent
from fedpress.compression.models.outputs import EvaluationError
from fedpress.compression.models.task import (
    IGNORED,
    DeviceError,
    Examples,
    Splits,
    Task,
    check_splits,
    class_axis,
    class_axis_of,
    disjoint,
    evaluate,
    has_target,
    require_evaluable,
)


class Rows(Task):
    """Ten numbers, of which the model's sign is asked."""

    name = "rows"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

    def data(self) -> Splits:
        inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        parts = [Examples(inputs[i : i + 10], (inputs[i : i + 10].sum(1) > 0).long()) for i in range(0, 40, 10)]
        return Splits(*parts)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluation_does_not_depend_on_the_batches(batch_size: int) -> None:
    task = Rows()
    torch.manual_seed(0)
    model, examples = task.model(), task.data().train
    with torch.no_grad():
        outputs = model.eval()(examples.inputs)
    expected = nn.functional.cross_entropy(outputs, examples.targets)

    found = evaluate(model, task, examples, batch_size=batch_size)

    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.accuracy == float((outputs.argmax(1) == examples.targets).float().mean())
    assert found.count == 10


class Places(Task):
    """At each of three places the sign of a number; right from 0.5 on, so that accuracy and loss differ."""

    name = "places"

    def model(self) -> nn.Module:
        return nn.Identity()

    def data(self) -> Splits:
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs >= 0.5) == (targets == 1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_place_of_a_sequence_is_an_answer(batch_size: int) -> None:
    inputs = torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.2, 0.2], [0.7, 0.4, 0.8]])
    targets = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    found = evaluate(nn.Identity(), Places(), Examples(inputs, targets), batch_size=batch_size)
    assert (found.accuracy, found.count) == (pytest.approx(7 / 9), 3)
    assert found.loss == pytest.approx(float((inputs - targets).square().mean()))


class Remembers(nn.Linear):
    """Writes what it is asked into itself, as a model with a hidden state may."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked = inputs
        return super().forward(self.asked)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_evaluation_is_the_same_on_any_number_of_threads(threads: int) -> None:
    class Many(Task):
        name = "many"

        def model(self) -> nn.Module:
            return Remembers(20, 5)

        def data(self) -> Splits:
            raise NotImplementedError

    draw, before = torch.Generator().manual_seed(1), torch.get_num_threads()
    examples = Examples(torch.randn(1300, 20, generator=draw), torch.randint(5, (1300,), generator=draw))
    model = Many().model()
    with torch.no_grad():
        outputs = model(examples.inputs)
    expected = int((outputs.argmax(dim=1) == examples.targets).sum()) / 1300
    torch.set_num_threads(1)
    once = evaluate(model, Many(), examples)
    torch.set_num_threads(threads)
    try:
        assert evaluate(model, Many(), examples) == once
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert once.accuracy == expected


class Judged(Task):
    """A task that judges outputs which are given: its model hands on its inputs."""

    name = "judged"

    def model(self) -> nn.Module:
        return nn.Identity()

    def data(self) -> Splits:
        raise NotImplementedError


class Weighted(Judged):
    """A mean in which a rare class counts ten times."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor([10.0, 1.0, 1.0])
        return nn.functional.cross_entropy(outputs, targets.clamp(min=0), weight=weight)


class BySequence(Judged):
    """Each sequence counts the same, however many of its places have a target."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        kept = has_target(targets).reshape(len(targets), -1)
        return ((losses.reshape(len(targets), -1) * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).mean()


class Summed(Judged):
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="sum")


class Contrastive(Judged):
    """Each output against all others of the batch."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        flat = outputs.flatten(1)
        return nn.functional.cross_entropy(flat @ flat.T, torch.arange(len(flat)))


class Torchs(Judged):
    """torch's own cross-entropy, NaN where no target is left."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def padded(count: int, length: int | None, seed: int) -> Examples:
    """Logits of three classes, (N, 3) or (N, 3, L), and targets, some of them missing, the first there."""
    draw = torch.Generator().manual_seed(seed)
    shape = (count,) if length is None else (count, length)
    targets = torch.randint(3, shape, generator=draw).sort(dim=0).values  # pieces are of unlike classes
    missing = torch.rand(shape, generator=draw) < torch.linspace(0, 0.9, count).reshape(-1, *[1] * (len(shape) - 1))
    targets[missing] = IGNORED
    targets.view(-1)[0] = 1
    return Examples(2 * torch.randn(count, 3, *shape[1:], generator=draw), targets)


@pytest.mark.parametrize("kind", [Judged, Weighted, BySequence, Summed, Contrastive, Torchs])
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.none() | st.integers(1, 6), st.integers(1, 150), st.integers(1, 3), st.integers(0, 99))
def test_figures_are_those_of_one_batch_whatever_the_loss(
    kind: type[Task], count: int, length: int | None, batch_size: int, threads: int, seed: int
) -> None:
    examples = padded(count, length, seed)
    there = has_target(examples.targets)
    right = (examples.inputs.argmax(dim=1) == examples.targets)[there]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = evaluate(nn.Identity(), kind(), examples, batch_size)
    finally:
        torch.set_num_threads(before)
    assert found.loss == pytest.approx(float(kind().loss(*examples)), rel=1e-4, abs=1e-6)
    assert (found.right, found.answers, found.count) == (int(right.sum()), int(there.sum()), count)
    assert found.accuracy == found.right / found.answers


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 120), st.integers(1, 119), st.integers(0, 99))
def test_right_answers_of_two_parts_add_up(count: int, cut: int, seed: int) -> None:
    examples = padded(count, 4, seed)
    examples.targets[-1] = 1
    parts = [examples.take(rows) for rows in np.split(np.arange(count), [min(cut, count - 1)])]
    whole, *rest = (evaluate(nn.Identity(), Judged(), part) for part in [examples, *parts])
    assert whole.right == sum(part.right for part in rest) and whole.answers == sum(part.answers for part in rest)
    mean = sum(part.loss * part.answers for part in rest) / whole.answers
    assert whole.loss == pytest.approx(mean, rel=1e-5)  # the default loss is a mean over answers


@pytest.mark.parametrize(("kind", "over"), [(Judged, "answers"), (BySequence, "examples"), (Torchs, "answers")])
def test_more_outputs_than_fit_are_averaged_over_what_the_loss_is_a_mean_of(
    monkeypatch: pytest.MonkeyPatch, kind: type[Task], over: str
) -> None:
    examples = padded(300, 5, seed=1)
    expected = evaluate(nn.Identity(), kind(), examples, batch_size=40)
    monkeypatch.setattr(tasks, "LOSS_BYTES", 4_000)
    assert evaluate(nn.Identity(), kind(), examples, batch_size=40).loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("kind", [Weighted, Summed, Contrastive])
def test_more_outputs_than_fit_are_refused_if_the_loss_is_no_mean(
    monkeypatch: pytest.MonkeyPatch, kind: type[Task]
) -> None:
    monkeypatch.setattr(tasks, "LOSS_BYTES", 4_000)
    with pytest.raises(EvaluationError, match=f"{kind.__name__}.loss is no mean over examples or answers"):
        evaluate(nn.Identity(), kind(), padded(300, 5, seed=1), batch_size=40)


def test_the_default_loss_is_torchs_to_the_bit_with_its_gradient() -> None:
    for seed in range(20):
        outputs, targets = padded(1 + seed, None if seed % 2 else 4, seed)
        outputs.requires_grad_()
        losses = [Judged().loss(outputs, targets), nn.functional.cross_entropy(outputs, targets)]
        gradients = [torch.autograd.grad(loss, outputs)[0] for loss in losses]
        assert torch.equal(*losses) and torch.equal(*gradients)
    nothing = torch.full((3,), IGNORED)
    assert float(Judged().loss(torch.randn(3, 4), nothing)) == 0.0


def test_without_any_target_there_is_no_accuracy() -> None:
    nothing = Examples(torch.randn(70, 3), torch.full((70,), IGNORED))
    for check in (evaluate, require_evaluable):
        with pytest.raises(EvaluationError, match="none of the targets of 70 examples counts"):
            check(nn.Identity(), Judged(), nothing)
    late = Examples(torch.randn(200, 3), torch.full((200,), IGNORED))
    late.targets[150] = 2
    require_evaluable(nn.Identity(), Judged(), late)


class OnlyThose(Judged):
    """Returns the answers that count, and no others."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(dim=1) == targets)[targets != 0]

    def scored(self, targets: torch.Tensor) -> torch.Tensor:
        return targets != 0


class WholeSequences(Judged):
    """Right where all places are, one answer an example; padding is class 0."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs.argmax(dim=1) == targets) | (targets == 0)).all(dim=1)


class Marked(OnlyThose):
    """Says by `scored` alone that class 0 is padding."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(dim=1) == targets


class Credit(Judged):
    """Half a point for the neighboring class."""

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1 - 0.5 * (outputs.argmax(dim=1) - targets).abs().clamp(max=2)


def test_a_task_says_which_answers_count_and_how_much() -> None:
    targets = torch.tensor([[1, 2, 0, 0], [2, 0, 0, 0], [1, 1, 1, 1]])
    answers = torch.tensor([[1, 2, 2, 2], [1, 1, 1, 1], [1, 1, 1, 0]])
    examples = Examples(nn.functional.one_hot(answers, 3).transpose(1, 2).float(), targets)
    for task in (OnlyThose(), Marked()):
        found = evaluate(nn.Identity(), task, examples, batch_size=2)
        assert (found.right, found.answers) == (5, 7)
    found = evaluate(nn.Identity(), WholeSequences(), examples, batch_size=2)
    assert (found.right, found.answers) == (1, 3)
    by_label = Examples(nn.functional.one_hot(torch.tensor([0, 1, 2]), 3).float(), torch.tensor([0, 0, 0]))
    assert evaluate(nn.Identity(), Credit(), by_label).accuracy == 0.5


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.randn(9, 1), torch.randn(9, 1), "override it to say which answers count as right"),  # a regression
        (torch.randn(9), torch.randn(9), "override it to say which answers count as right"),
        (torch.randn(9, 9), torch.randint(2, (9, 9)), r"outputs of shape \(9, 9\) for targets of \(9, 9\)"),
        (torch.randn(9, 4), torch.randint(2, (9, 4)).float(), "override it to say which answers count as right"),
        (torch.randn(9, 5, 3), torch.randint(3, (9, 5)), r"outputs of shape \(9, 5, 3\) for targets of \(9, 5\)"),
    ],
)
def test_what_the_default_cannot_judge_is_refused(outputs: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    class Square(Judged):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

    for check in (evaluate, require_evaluable):
        with pytest.raises(EvaluationError, match=message):
            check(nn.Identity(), Square(), Examples(outputs, targets))


def test_targets_may_be_probabilities() -> None:
    targets = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    found = evaluate(nn.Identity(), Judged(), Examples(torch.eye(3)[[0, 2, 2]], targets))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(torch.eye(3)[[0, 2, 2]], targets)))


def test_judgments_of_a_broadcast_shape_are_refused() -> None:
    class Broadcast(Judged):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.mean()

        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.argmax(dim=1) == targets  # (N,) == (N, 1) is (N, N)

    with pytest.raises(EvaluationError, match=r"returns \(9, 9\) for targets of \(9, 1\).*broadcast"):
        evaluate(nn.Identity(), Broadcast(), Examples(torch.randn(9, 3), torch.randint(3, (9, 1))))


def test_outputs_of_several_tensors_are_the_tasks_to_judge() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, -x

    class Second(Judged):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().loss(outputs[1], targets)

        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().correct(outputs[1], targets)

    examples = padded(150, None, seed=3)
    negated = Examples(-examples.inputs, examples.targets)
    found, expected = evaluate(Two(), Second(), examples), evaluate(nn.Identity(), Judged(), negated)
    assert (found.right, found.loss) == (expected.right, pytest.approx(expected.loss, rel=1e-6))
    with pytest.raises(EvaluationError, match="returns a tuple, and the task has the default `correct`"):
        evaluate(Two(), Judged(), examples)


@pytest.mark.parametrize("count", [63, 64, 65, 128, 513])
def test_normalization_by_the_batch_is_that_of_all_examples(count: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16, track_running_stats=False)
    model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 4)).eval()
    inputs = torch.randn(count, 8) * torch.linspace(0.1, 3, count)[:, None]
    targets = torch.randint(0, 4, (count,))
    with torch.no_grad():
        outputs = model(inputs)
    found = evaluate(model, Judged(), Examples(inputs, targets))
    assert found.right == int((outputs.argmax(dim=1) == targets).sum())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)), rel=1e-5)


def test_what_cannot_be_evaluated_is_found_before_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = padded(200, None, seed=0)
    dropping = nn.Sequential(nn.Linear(3, 3), Dropping())
    with pytest.raises(BatchDependent, match="'1' \\(Dropping\\)"):
        require_evaluable(dropping, Judged(), examples)
    require_evaluable(nn.Linear(3, 3), Judged(), examples)


class Dropping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize("length", [3, 7])
def test_a_task_is_asked_for_its_axis_of_classes(length: int) -> None:
    """Also where there are as many classes as places, so that shapes do not tell."""
    outputs, places = torch.zeros(4, 7, length), torch.zeros(4, length, dtype=torch.int64)

    class Last(Judged):
        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.argmax(dim=-1) == targets

    class Near(Judged):
        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs[:, 0] - targets).abs() < 0.1

    assert class_axis(Judged(), outputs, places) == 1
    assert class_axis(Last(), outputs.transpose(1, 2), places) == 2
    assert class_axis(Judged(), outputs[:, :, 0], places[:, 0]) == 1
    assert class_axis(Near(), outputs[:, :, 0], places[:, 0]) is None
    assert class_axis(Near(), outputs[:, :, 0], torch.zeros(4)) is None


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model = Rows().model().train()
    model[1].eval()  # a layer that a user froze
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    evaluate(model, Rows(), Rows().data().train)

    assert [module.training for module in model] == [True, False, True, True] and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_of_nothing_is_refused() -> None:
    nothing = Rows().data().train.take(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="0 examples"):
        evaluate(Rows().model(), Rows(), nothing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        evaluate(Rows().model(), Rows(), Rows().data().test, device="cuda")


def test_good_splits_pass_untouched() -> None:
    splits, before = Rows().data(), Rows().data()
    check_splits(splits)
    assert all(
        torch.equal(a, b) for part, old in zip(splits, before, strict=True) for a, b in zip(part, old, strict=True)
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda part: Examples(part.inputs[:9], part.targets), "9 inputs but 10 targets"),
        (lambda part: part.take(np.array([], dtype=np.int64)), "0 examples"),
        (lambda part: Examples(part.inputs.double(), part.targets), "float64"),
        (lambda part: Examples(part.inputs[:, :2], part.targets), r"\(2,\)"),
        (lambda part: Examples(part.inputs, part.targets.int()), "int32"),
    ],
)
def test_splits_that_do_not_fit_are_refused(spoil, message) -> None:
    splits = Rows().data()
    with pytest.raises(ValueError, match=message):
        check_splits(splits._replace(proxy=spoil(splits.proxy)))


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=3))
def test_parts_of_a_permutation_are_disjoint_and_no_index_can_be_added_twice(order: list[int], cuts: list[int]) -> None:
    parts = np.split(np.array(order), sorted(cuts))
    disjoint(*parts)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 12  # what disjoint parts of a whole are
    with pytest.raises(ValueError, match=f"share 1 example, the first is {order[0]}:"):
        disjoint(*parts, np.array([order[0]]))


@given(st.sets(st.integers(0, 50), min_size=1), st.data())
def test_a_shared_index_is_found(indices: set[int], data: st.DataObject) -> None:
    leaked = data.draw(st.sampled_from(sorted(indices)))
    with pytest.raises(ValueError, match=f"share 1 example, the first is {leaked}"):
        disjoint(np.array(sorted(indices)), np.arange(100, 110), np.array([leaked, 99]))


def test_an_index_twice_in_one_set_is_found() -> None:
    with pytest.raises(ValueError, match="index set 1 holds an index twice"):
        disjoint(np.array([0]), np.array([1, 1]))


class Hugging(nn.Module):
    """Returns logits by name, beside what is no output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: torch.Tensor) -> Any:
        logits = self.model(**given)
        by_place = logits.transpose(1, 2) if logits.ndim == 3 else logits
        return OrderedDict(logits=by_place, cache=object(), loss=None)


@pytest.mark.parametrize("kind", ["plain", "places"])
@pytest.mark.parametrize("batch_size", [7, 100, 512])
def test_figures_of_stored_sequences_are_those_of_one_batch(kind: str, batch_size: int) -> None:
    """Batches are padded to unlike lengths, and places of padding count in nothing."""
    task, whole = texts.Texts(kind), texts.Texts(kind, "memory")
    torch.manual_seed(0)
    model, (batch, targets) = task.model().eval(), whole.data().train
    with torch.no_grad():
        logits = model(**batch)
    fit = targets[:, : logits.shape[-1]] if kind == "places" else targets
    expected = float(nn.functional.cross_entropy(logits, fit))  # without places of -100
    right = int((logits.argmax(1) == fit).sum())
    for judged in (model, Hugging(model)):
        found = evaluate(judged, task, task.data().train, batch_size=batch_size)
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert (found.right, found.answers) == (right, int((fit != -100).sum()))


@pytest.mark.parametrize("length", [3, 7])
def test_logits_by_name_have_the_classes_last(length: int) -> None:
    """Also where there are as many classes as places, so that shapes do not tell."""
    logits, targets = torch.randn(4, length, 3), torch.randint(3, (4, length))
    targets[:, -1] = -100
    found = Judged().loss({"logits": logits}, targets)
    assert torch.equal(found, Judged().loss(logits.transpose(1, 2), targets))
    right = Judged().correct({"logits": logits}, targets)
    assert torch.equal(right, logits.argmax(-1) == targets)
    assert class_axis(Judged(), {"logits": logits}, targets) == 2
    assert class_axis(Judged(), {"logits": logits[:, 0]}, targets[:, 0]) == 1


def test_one_output_with_fractions_is_a_regression() -> None:
    targets, answers = torch.tensor([1.0, 2.0]), torch.tensor([[1.5], [2.0]])
    for outputs in (answers, answers[:, 0], {"logits": answers}):
        assert float(Judged().loss(outputs, targets)) == 0.125
        assert float(Judged().loss(outputs, targets[:, None])) == 0.125
        with pytest.raises(EvaluationError, match="override it to say which answers count as right"):
            Judged().correct(outputs, targets)


def test_outputs_by_name_without_logits_are_the_tasks_to_judge() -> None:
    outputs = {"start": torch.zeros(2, 3), "end": torch.zeros(2, 3)}
    for method in (Judged().loss, Judged().correct):
        with pytest.raises(
            EvaluationError, match="returns a dict of start, end, and the task has the default .*logits"
        ):
            method(outputs, torch.zeros(2).long())


def test_the_axis_of_classes_of_a_model_of_sequences_is_known() -> None:
    for kind, axis in (("plain", 1), ("places", 1)):
        assert class_axis_of(texts.Texts(kind).model(), texts.Texts(kind)) == axis
    task = texts.Texts("places")
    assert class_axis_of(Hugging(task.model()), task) == 2
