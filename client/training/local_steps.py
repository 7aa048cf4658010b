"""Passes over batches and steps by their gradients, as local training puts them together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fedpress.client.settings import Training
from fedpress.client.training import optimizers
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import batches, inputs
from fedpress.compression.models.outputs import Outputs, fitted
from fedpress.compression.models.task import IGNORED, Examples


@contextmanager
def autocast(settings: Training, device: torch.device) -> Iterator[None]:
    """Run forward passes in the precision of the settings.

    Args:
        settings: precision.
        device: device of the model.

    Raises:
        PrecisionError: the device lacks an operation in float16.
    """
    precision = settings.precision
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    try:
        with torch.autocast(device.type, dtype, enabled=precision != "float32"):
            yield
    except RuntimeError as error:
        if precision == "float16" and "'Half'" in str(error):
            raise PrecisionError(
                f"training.precision: float16 cannot be used on {device.type} with this model: {error}; use bfloat16 or"
                " float32"
            ) from error
        raise


class PrecisionError(FedpressError, ValueError):
    """A model cannot be trained in a precision; the text says why."""


class Passes:
    """Forward and backward passes over batches, and the sums of the loss."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        loss: Callable[[Outputs, Tensor], Tensor],
        settings: Training,
        scored: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self._model = model
        self._examples = examples
        self._loss = loss
        self._settings = settings
        self._scored = scored
        self._device = device
        self._total, self._seen, self._spare, self._unscored = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(4)
        )

    def sample(self) -> Tensor:
        """Return the loss of the first examples."""
        return self._value(torch.arange(min(2, len(self._examples.targets))))

    def add_gradients(self, batch: Tensor, scaler: GradScaler) -> bool:
        """Add the gradient of a batch's mean loss, piece by piece; return whether there is any.

        Law: the gradient does not depend on the size of the pieces, up to rounding, without batch normalization.

        Args:
            batch: indices of the examples, int64 (N,).
            scaler: scales the loss before the backward pass.
        """
        size = self._settings.micro_batch_size
        pieces = batches.split(batch, size, self._model) if size else [batch]
        answers = self._answers(batch)
        any_piece = False
        for piece in pieces:
            in_piece = self._answers(piece)
            if answers and not in_piece:
                continue
            value = self._autocast_value(piece)
            if not answers and not torch.isfinite(value):
                continue
            share = in_piece / answers if answers else len(piece) / len(batch)
            scaler.scale(value * share if len(pieces) > 1 else value).backward()  # type: ignore[no-untyped-call]
            any_piece = True
            if answers:
                self._total += value.detach().double() * in_piece
                self._seen += in_piece
            else:
                self._spare += value.detach().double() * len(piece)
                self._unscored += len(piece)
        return any_piece

    def mean_loss(self) -> float:
        """Return the mean of the loss over all answers seen.

        Raises:
            ValueError: no example has a target.
        """
        if self._seen:
            return float(self._total / self._seen)
        if self._unscored:
            return float(self._spare / self._unscored)
        raise ValueError(
            f"none of the {len(self._examples.targets)} examples of this client has a target: all are {IGNORED}"
        )

    def _answers(self, rows: Tensor) -> int:
        return int(self._scored(self._examples.targets[rows]).sum())

    def _autocast_value(self, rows: Tensor) -> Tensor:
        with autocast(self._settings, self._device):
            return self._value(rows)

    def _value(self, rows: Tensor) -> Tensor:
        given, targets = self._examples.batch(rows)
        given = inputs.to(given, self._device)
        outputs = inputs.call(self._model, given)
        return self._loss(outputs, fitted(targets.to(self._device), outputs, given))


class Stepping:
    """Steps by the gradients that are there: unscaled, within the mask, clipped, in this order.

    Attributes:
        scaler: scales losses in float16, and leaves them as they are otherwise.
        param_groups: the trained parameters, in the form that the scaler reads.
    """

    def __init__(
        self,
        optimizer: optimizers.Optimizer,
        trained: list[nn.Parameter],
        masked: list[tuple[nn.Parameter, Tensor]],
        settings: Training,
        device: torch.device,
    ) -> None:
        self.scaler = GradScaler(device.type, enabled=settings.precision == "float16")
        self.param_groups = [{"params": trained}]
        self._optimizer = optimizer
        self._trained = trained
        self._masked = masked
        self._settings = settings
        self._rate = 0.0
        self._taken = 0
        self._tried = 0
        half = [p.dtype for p in trained if p.dtype == torch.float16]
        if self.scaler.is_enabled() and half:
            raise PrecisionError(
                "training.precision: float16 needs float32 weights, and the model has weights in float16; return"
                " model.float()"
            )

    def take(self, rate: float) -> None:
        """Step once, unless the scaled gradients are beyond the range of float16.

        Args:
            rate: learning rate.
        """
        self._rate = rate
        self._tried += 1
        for parameter in self._trained:
            if parameter.grad is not None and parameter.grad.is_sparse:  # of nn.Embedding(sparse=True)
                parameter.grad = parameter.grad.to_dense()
        as_torchs = cast(torch.optim.Optimizer, self)  # the scaler asks for no more than it has
        self.scaler.unscale_(as_torchs)
        for parameter, present in self._masked:
            if parameter.grad is not None:
                parameter.grad.mul_(present)
        if self._settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        self.scaler.step(as_torchs)
        self.scaler.update()

    def step(self) -> None:
        """Step by the gradients as they are, which the scaler calls."""
        self._taken += 1
        self._optimizer.step(self._rate)
        if self._settings.optimizer == "muon":  # orthogonalized, a step reaches every entry of a matrix
            with torch.no_grad():
                for parameter, present in self._masked:
                    parameter.mul_(present)

    def say_skipped(self, steps: int) -> None:
        """Log how many steps were skipped, as the scaled loss was too large for float16."""
        if skipped := self._tried - self._taken:
            getLogger("flwr").warning(
                "float16: %d of %d local steps were skipped, as their scaled gradients are beyond its range%s",
                skipped, steps, "; use bfloat16 or float32" if not self._taken else "",
            )  # fmt: skip
