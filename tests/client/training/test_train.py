"""Local training: repeats itself, follows its settings, and counts what it saw."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.apps import texts
from torch import nn

from fedpress.client.settings import Training
from fedpress.client.training.train import gradient, train
from fedpress.compression.models.task import IGNORED, DeviceError, Examples
from fedpress.simulations.tasks.digits import Digits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def examples(count: int = 50) -> Examples:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(3))
    return Examples(inputs, (inputs[:, 0] > 0).long())


def trained(settings: Training, seed: int = 5) -> torch.Tensor:
    made = model()
    train(made, examples(), nn.functional.cross_entropy, settings, seed)
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others() -> None:
    settings = Training(epochs=2, batch_size=16, momentum=0.9)
    assert torch.equal(trained(settings), trained(settings))
    assert not torch.equal(trained(settings), trained(settings, seed=6))


def deep() -> nn.Module:
    """The same with a hidden matrix."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


OPTIMIZERS = [
    Training(epochs=3, batch_size=16, momentum=0.9, weight_decay=0.1),
    Training(epochs=3, batch_size=16, optimizer="adamw", weight_decay=0.1, learning_rate=0.01),
    Training(epochs=3, batch_size=16, optimizer="muon", weight_decay=0.1, learning_rate=0.01),
]


class Partly(nn.Module):
    """A parameter that the loss never reaches, besides those that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.line = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.line(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_steps_are_those_of_torchs_sgd_to_the_bit(momentum: float, weight_decay: float) -> None:
    ours, theirs, data = Partly(), Partly(), examples(40)
    theirs.load_state_dict(ours.state_dict())
    settings = Training(steps=6, batch_size=40, learning_rate=0.3, momentum=momentum, weight_decay=weight_decay)
    train(ours, data, nn.functional.cross_entropy, settings, 5)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.3, momentum, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(5)
    for _ in range(6):
        batch = torch.randperm(40, generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_training_does_without_the_compiler_of_torch() -> None:
    """Importing it costs each process a second and 70 MB."""
    code = (
        "import sys, torch; from torch import nn; from fedpress.client import settings\n"
        "from fedpress.client.training import train\n"
        "data = train.Examples(torch.ones(4, 2), torch.zeros(4).long())\n"
        "for how in (settings.Training(momentum=0.9), settings.Training(optimizer='adamw', max_grad_norm=1.0)):\n"
        "    train.train(nn.Linear(2, 2), data, nn.functional.cross_entropy, how, 1)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_training_lowers_the_loss() -> None:
    made = model()
    first = train(made, examples(), nn.functional.cross_entropy, Training(epochs=1, batch_size=10), seed=1)
    later = train(made, examples(), nn.functional.cross_entropy, Training(epochs=10, batch_size=10), seed=2)
    assert later < first


def test_bfloat16_learns_about_the_same_and_keeps_float32_weights() -> None:
    full = trained(Training(epochs=5, batch_size=10))
    half = trained(Training(epochs=5, batch_size=10, precision="bfloat16"))
    start = torch.cat([p.detach().flatten() for p in model().parameters()])
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).norm() < 0.1 * (full - start).norm()


def test_steps_replace_epochs() -> None:
    one_epoch = Training(epochs=1, batch_size=10)
    assert torch.equal(trained(one_epoch), trained(Training(steps=5, batch_size=10)))
    assert not torch.equal(trained(one_epoch), trained(Training(steps=4, batch_size=10)))
    assert trained(Training(steps=12, batch_size=10)).isfinite().all()  # more than two epochs


def test_the_proximal_term_anchors_at_the_start() -> None:
    start = torch.cat([p.detach().flatten() for p in model().parameters()])
    far = (trained(Training(epochs=5)) - start).norm()
    near = (trained(Training(epochs=5, proximal_mu=5.0)) - start).norm()
    assert near < 0.7 * far
    plain = nn.Linear(1, 1, bias=False)
    plain.weight.data.fill_(2.0)
    data = Examples(torch.ones(1, 1), torch.zeros(1))
    # the first step leaves the anchor by -rate * gradient; the second is pulled back by rate * mu * (w - anchor)
    train(plain, data, lambda out, _: out.mean(), Training(steps=2, learning_rate=0.1, proximal_mu=1.0), seed=0)
    assert plain.weight.item() == pytest.approx(2.0 - 0.1 - 0.1 + 0.1 * 0.1)


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        train(model(), examples(0), nn.functional.cross_entropy, Training(), seed=0)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device"):
            train(model(), examples(), nn.functional.cross_entropy, Training(device="cuda"), seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_learns_and_comes_back_to_the_cpu() -> None:
    made = model()
    settings = Training(epochs=20, batch_size=10, device="cuda")
    assert train(made, examples(), nn.functional.cross_entropy, settings, seed=0) < 0.5
    assert all(p.device.type == "cpu" for p in made.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        Training(epochs=2, batch_size=10, momentum=0.9, weight_decay=0.1),
        Training(epochs=2, batch_size=10, proximal_mu=0.5, precision="bfloat16"),
        Training(epochs=2, batch_size=10, optimizer="adamw", weight_decay=0.1, proximal_mu=0.5, max_grad_norm=0.5),
        Training(epochs=2, batch_size=10, optimizer="muon", weight_decay=0.1, micro_batch_size=4),
        Training(epochs=2, batch_size=10, optimizer="adamw", precision="float16"),
    ],
)
def test_a_weight_outside_the_mask_stays_zero(settings: Training) -> None:
    made, draw = deep(), np.random.default_rng(1)
    flags = {name: draw.random(tuple(p.shape)) < 0.5 for name, p in made.named_parameters() if "weight" in name}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in flags:
                parameter.mul_(torch.from_numpy(flags[name]))
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    train(made, examples(), nn.functional.cross_entropy, settings, 1, flags)
    for name, parameter in made.named_parameters():
        there = torch.from_numpy(flags[name]) if name in flags else torch.ones_like(parameter, dtype=torch.bool)
        assert not parameter[~there].any()
        assert not torch.equal(parameter[there], before[name][there])


def test_the_gradient_is_that_of_the_mean_loss_whatever_the_batches() -> None:
    made = nn.Linear(4, 2)
    nn.functional.cross_entropy(made(examples().inputs), examples().targets).backward()
    expected = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    found = gradient(made, examples(), nn.functional.cross_entropy, Training(batch_size=7), 1)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


@pytest.mark.parametrize("count", [1, 17, 33])
@pytest.mark.parametrize("settings", [Training(epochs=2, batch_size=16), Training(steps=5, batch_size=16)])
def test_batch_normalization_takes_any_number_of_examples(count: int, settings: Training) -> None:
    made = model()
    before = [p.detach().clone() for p in made.parameters()]
    assert np.isfinite(train(made, examples(count), nn.functional.cross_entropy, settings, 5))
    assert all(torch.isfinite(p).all() for p in made.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(made.parameters(), before, strict=True))
    assert gradient(made, examples(count), nn.functional.cross_entropy, settings, 5)["0.weight"].any()


def test_without_batch_normalization_a_last_batch_of_one_is_a_step_as_ever() -> None:
    ours, data = nn.Linear(4, 2), examples(17)
    theirs = nn.Linear(4, 2)
    theirs.load_state_dict(ours.state_dict())
    train(ours, data, nn.functional.cross_entropy, Training(batch_size=16, learning_rate=0.3), 5)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.3)
    for batch in torch.split(torch.randperm(17, generator=torch.Generator().manual_seed(5)), 16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_a_batch_without_a_target_is_left_out_and_examples_without_any_are_an_error() -> None:
    data = examples(40)
    targets = data.targets.clone()
    targets[4:] = IGNORED
    made, settings = nn.Linear(4, 2), Training(batch_size=4, epochs=3)  # of ten batches most have no target
    assert np.isfinite(train(made, Examples(data.inputs, targets), nn.functional.cross_entropy, settings, 5))
    assert torch.isfinite(made.weight).all()
    assert np.isfinite(
        gradient(made, Examples(data.inputs, targets), nn.functional.cross_entropy, settings, 5)["bias"]
    ).all()
    with pytest.raises(ValueError, match="none of the 40 examples of this client has a target"):
        train(made, Examples(data.inputs, torch.full_like(targets, IGNORED)), nn.functional.cross_entropy, settings, 5)


def test_a_loss_that_makes_use_of_examples_without_a_target_gets_them() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.square().mean()

    made, data = nn.Linear(4, 2), examples(8)
    before = made.weight.detach().clone()
    train(made, Examples(data.inputs, torch.full_like(data.targets, IGNORED)), loss, Training(batch_size=4), 5)
    assert not torch.equal(made.weight, before)


class Places(nn.Module):
    """Logits of three classes at each of four places, from its numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(1, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.line(inputs[..., None]).transpose(1, 2)  # type: ignore[no-any-return]


def padded() -> Examples:
    """Sequences of unlike lengths, the second batch of four without any target."""
    targets = torch.tensor([[0, 1, 2, 1], [1, IGNORED, IGNORED, IGNORED], [2, 0, IGNORED, IGNORED], [0, 0, 0, 0]])
    targets = torch.cat([targets, torch.full((4, 4), IGNORED), targets.flip(0)])
    return Examples(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), targets)


@pytest.mark.parametrize("loss", [Digits().loss, nn.functional.cross_entropy])
def test_the_loss_of_a_training_is_a_mean_over_the_targets_that_are_there(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    examples = padded()
    still = Training(epochs=1, batch_size=3, learning_rate=1e-12)
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(Places()(examples.inputs), examples.targets))
    assert train(Places(), examples, loss, still, seed=1) == pytest.approx(expected, rel=1e-5)
    nothing, model = Examples(examples.inputs[4:8], examples.targets[4:8]), Places()
    if loss is nn.functional.cross_entropy:  # NaN
        with pytest.raises(ValueError, match="none of the 4 examples"):
            train(model, nothing, loss, Training(epochs=2), seed=1)
    else:
        assert train(model, nothing, loss, Training(epochs=2), seed=1) == 0
    assert all(torch.equal(value, Places().state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12])
def test_the_gradient_leaves_out_places_without_a_target_whatever_the_batches(batch_size: int) -> None:
    examples, model = padded(), Places()
    nn.functional.cross_entropy(model(examples.inputs), examples.targets).backward()
    found = gradient(Places(), examples, nn.functional.cross_entropy, Training(batch_size=batch_size), seed=1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda settings: settings.optimizer)
def test_every_optimizer_learns_repeats_itself_and_is_pulled_back_by_the_proximal_term(settings: Training) -> None:
    def run(settings: Training) -> tuple[torch.Tensor, float]:
        made = deep()
        loss = train(made, examples(), nn.functional.cross_entropy, settings, 5)
        return torch.cat([p.detach().flatten() for p in made.parameters()]), loss

    start = torch.cat([p.detach().flatten() for p in deep().parameters()])
    once, loss = run(settings)
    assert torch.equal(once, run(settings)[0])
    assert run(dataclasses.replace(settings, epochs=20))[1] < loss
    pulled, _ = run(dataclasses.replace(settings, proximal_mu=50.0, learning_rate=0.005))
    free, _ = run(dataclasses.replace(settings, learning_rate=0.005))
    assert (pulled - start).norm() < 0.95 * (free - start).norm()


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda settings: settings.optimizer)
def test_what_is_frozen_stays_to_the_bit_and_with_it_its_running_statistics(settings: Training) -> None:
    made = deep()
    for index in (0, 1):
        made[index].requires_grad_(False)  # type: ignore[index, operator]
    before = {name: value.clone() for name, value in made.state_dict().items()}
    moments: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    train(made, examples(), nn.functional.cross_entropy, settings, 5, moments=moments)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("0.", "1.")), name
    assert moments and not any(name.partition("/")[2].startswith(("0.", "1.")) for name in moments)
    assert made.training  # type: ignore[truthy-bool]
    found = gradient(made, examples(), nn.functional.cross_entropy, settings, 5)
    assert not found["0.weight"].any() and found["3.weight"].any()
    assert torch.equal(made.state_dict()["1.running_mean"], before["1.running_mean"])


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda settings: settings.optimizer)
def test_kept_moments_go_on_and_those_outside_a_new_mask_begin_from_zero(
    settings: Training, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")

    def second(moments: dict[str, np.ndarray], flags: dict[str, np.ndarray] | None = None) -> torch.Tensor:  # type: ignore[type-arg]
        made = deep()
        if flags:
            made[3].weight.data.mul_(torch.from_numpy(flags["3.weight"]))  # type: ignore[index, union-attr, operator]
        train(made, examples(), nn.functional.cross_entropy, settings, 6, flags, moments=moments)
        return made[3].weight.detach()  # type: ignore[index, union-attr, return-value]

    moments: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    train(deep(), examples(), nn.functional.cross_entropy, settings, 5, moments=moments)
    assert all(np.isfinite(moment).all() for moment in moments.values())
    kept = {name: moment.copy() for name, moment in moments.items()}
    assert not torch.equal(second(moments), second({}))
    assert any(not np.array_equal(kept[name], moments[name]) for name in kept)
    flags = {"3.weight": np.eye(8, dtype=bool)}
    assert not second({name: moment.copy() for name, moment in kept.items()}, flags)[
        ~torch.eye(8, dtype=torch.bool)
    ].any()
    assert "the mask has changed" in caplog.text


def test_moments_of_another_optimizer_are_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    moments: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    train(deep(), examples(), nn.functional.cross_entropy, OPTIMIZERS[1], 5, moments=moments)
    train(deep(), examples(), nn.functional.cross_entropy, OPTIMIZERS[0], 5, moments=moments)
    assert "are of another optimizer" in caplog.text
    assert {name.partition("/")[0] for name in moments} == {"velocity"}


def test_schedules_move_the_rate_over_the_rounds() -> None:
    def moved(**where: int) -> float:
        made = nn.Linear(4, 2)
        for parameter in made.parameters():
            nn.init.zeros_(parameter)
        settings = Training(epochs=1, batch_size=50, schedule="linear", learning_rate=0.1)
        train(made, examples(), nn.functional.cross_entropy, settings, 5, **where)
        return float(made.weight.detach().norm())

    assert moved(round=3, rounds=4) == pytest.approx(moved() / 2)


def test_gradient_checkpointing_leaves_the_training_as_it_is() -> None:
    def run(again: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        made = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)) for _ in range(3)))
        train(
            made, examples(17), nn.functional.cross_entropy,
            Training(epochs=2, batch_size=8, gradient_checkpointing=again), 5,
        )  # fmt: skip
        return made.state_dict()

    plain, again = run(False), run(True)
    assert all(torch.equal(plain[name], value) for name, value in again.items())


def test_float16_learns_about_the_same_on_the_cpu() -> None:
    full, half = (
        trained(Training(epochs=5, batch_size=10, precision=precision)) for precision in ("float32", "float16")
    )
    start = torch.cat([p.detach().flatten() for p in model().parameters()])
    assert not torch.equal(half, full) and (half - full).norm() < 0.1 * (full - start).norm()


@pytest.mark.parametrize("kind", ["plain", "places"])
def test_padding_changes_nothing_in_training(kind: str) -> None:
    """Stored texts are padded to the longest of a batch, the others all to one length: the same weights and loss."""
    trained = []
    for source in ("lists", "lines", "memory"):
        task = texts.Texts(kind, source)
        torch.manual_seed(0)
        model, part = task.model(), task.data().train.take(np.arange(50))
        loss = train(model, part, task.loss, Training(epochs=2, batch_size=8, learning_rate=0.3), seed=5)
        slopes = gradient(model, part, task.loss, Training(batch_size=8), seed=5)
        trained.append((loss, [*model.parameters()], [torch.from_numpy(slope) for slope in slopes.values()]))
    for loss, weights, slopes in trained[1:]:
        assert loss == pytest.approx(trained[0][0], rel=1e-4)
        for one, other in zip([*weights, *slopes], [*trained[0][1], *trained[0][2]], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class Words(nn.Module):
    """A table of words, and the mean of those of a text."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(9, 2, sparse=sparse)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(ids).mean(1)
        return found


@pytest.mark.parametrize("settings", [*OPTIMIZERS[:2], Training(epochs=2, batch_size=16, max_grad_norm=0.01)])
def test_sparse_gradients_are_as_good_as_dense_ones(settings: Training) -> None:
    ids = torch.randint(9, (40, 5), generator=torch.Generator().manual_seed(4))
    made = [Words(sparse) for sparse in (True, False)]
    for each in made:
        train(each, Examples(ids, (ids[:, 0] > 4).long()), nn.functional.cross_entropy, settings, 5)
    assert torch.equal(made[0].table.weight, made[1].table.weight)
