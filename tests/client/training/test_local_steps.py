"""Passes and steps: pieces of a batch have its gradient, clipping comes last, and float16 skips what it cannot hold."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpress.client.settings import Training
from fedpress.client.training import optimizers
from fedpress.client.training.local_steps import Passes, PrecisionError, Stepping, autocast
from fedpress.compression.models.task import IGNORED, Examples, has_target

CPU = torch.device("cpu")


class Places(nn.Module):
    """Logits of three classes at each of four places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.layers(numbers[..., None]).transpose(1, 2)  # type: ignore[no-any-return]


def gradient(micro_batch_size: int | None, targets: Tensor, inputs: object) -> tuple[Tensor, float]:
    model = Places()
    settings = Training(micro_batch_size=micro_batch_size)
    passes = Passes(model, Examples(inputs, targets), nn.functional.cross_entropy, settings, has_target, CPU)
    stepping = Stepping(optimizers.create(model, settings, passes.sample), [*model.parameters()], [], settings, CPU)
    assert passes.add_gradients(torch.arange(len(targets)), stepping.scaler)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), passes.mean_loss()


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, IGNORED]), min_size=4, max_size=4), min_size=1, max_size=9))
def test_pieces_of_a_batch_add_up_to_its_gradient_and_its_loss(targets: list[list[int]]) -> None:
    targets[0][0] = 1  # at least one place counts
    given_targets = torch.tensor(targets)
    inputs = torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(0))
    whole, loss = gradient(None, given_targets, inputs)
    for size in (1, 2, 4, 100):
        parts, mean = gradient(size, given_targets, inputs)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
        assert mean == pytest.approx(loss, rel=1e-5)


def test_inputs_may_be_tensors_by_name() -> None:
    numbers, targets = torch.randn(6, 4), torch.randint(3, (6, 4))
    by_name, _ = gradient(2, targets, {"numbers": numbers})
    assert torch.equal(by_name, gradient(2, targets, numbers)[0])


def stepping_of(model: nn.Module, settings: Training, present: Tensor | None = None) -> Stepping:
    trained = list(model.parameters())
    masked = [] if present is None else [(trained[0], present)]
    return Stepping(optimizers.create(model, settings, lambda: torch.zeros(())), trained, masked, settings, CPU)


def test_the_norm_that_is_clipped_is_that_of_all_parameters_within_the_mask() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    stepping = stepping_of(model, Training(max_grad_norm=1.0), torch.tensor([[True, False]]))
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 100.0]]), torch.tensor([4.0])
    stepping.take(1.0)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-0.6, 0.0]]))
    torch.testing.assert_close(model.bias.detach(), torch.tensor([-0.8]))
    model.weight.grad, model.bias.grad = torch.tensor([[0.3, 0.0]]), torch.tensor([0.4])  # below the norm: as it is
    stepping.take(1.0)
    torch.testing.assert_close(model.bias.detach(), torch.tensor([-1.2]))


def test_a_step_beyond_float16_is_skipped_counted_and_said_and_the_next_ones_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    stepping = stepping_of(model, Training(precision="float16"))
    for size in (float("inf"), 1.0):
        stepping.scaler.scale(torch.zeros(()))  # as a loss of this step
        model.weight.grad, model.bias.grad = torch.full((1, 2), size), torch.zeros(1)
        stepping.take(1.0)
        assert torch.equal(model.weight, before) == (size > 1)
    with caplog.at_level(logging.WARNING, "flwr"):
        stepping.say_skipped(2)
    assert "1 of 2 local steps were skipped" in caplog.text and "use bfloat16" not in caplog.text


def test_what_cannot_be_done_in_float16_has_a_clear_error() -> None:
    with pytest.raises(PrecisionError, match="float16 needs float32 weights.*model.float"):
        stepping_of(nn.Linear(2, 1).half(), Training(precision="float16"))
    with pytest.raises(PrecisionError, match="cannot be used on cpu.*not implemented for 'Half'.*use bfloat16"):
        with autocast(Training(precision="float16"), CPU):
            raise RuntimeError("\"an_operation\" not implemented for 'Half'")
    with pytest.raises(RuntimeError, match="shapes"):
        with autocast(Training(precision="float16"), CPU):
            raise RuntimeError("shapes differ")
