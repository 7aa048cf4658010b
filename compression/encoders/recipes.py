"""Recipes: published methods as chains of public parts; a chain of your own is written in the same way.

>>> sorted(RECIPES)
['dgc', 'eden', 'fedpress', 'fp16', 'int8', 'powersgd', 'qsgd', 'random_k', 'signsgd', 'stc', 'terngrad']
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedpress.compression.encoders import encoder, error_feedback, selection, sign_sgd, wrappers
from fedpress.compression.encoders import powersgd as low_rank
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.encoders.error_feedback import Residual
from fedpress.compression.encoders.momentum import Momentum, momentum_corrected
from fedpress.compression.encoders.powersgd import Factored
from fedpress.compression.quantizers import eden as eden_form
from fedpress.compression.quantizers import qsgd as qsgd_form
from fedpress.compression.quantizers import terngrad as terngrad_form
from fedpress.compression.wire import values
from fedpress.compression.wire.values import ValueFormat


def default(density: float = 0.01, format: ValueFormat = values.STEP) -> Encoder[Residual[None]]:
    """The default: top-k with error feedback, and training starts ahead by the whole residual.

    Args:
        density: Fraction of the entries that is sent, 0 < density <= 1.
        format: Format of the values. `values.STEP` has a relative error of 8 %; `values.TERNARY` takes fewer bytes and
            needs a higher server learning rate (docs/decisions/0006-default-values.md).
    """
    return error_feedback.step_ahead(error_feedback.error_feedback(encoder.sparse(selection.top_k(density), format)))


def stc(density: float) -> Encoder[Residual[None]]:
    """Sparse ternary compression: top-k, written as signs and one magnitude, with error feedback.

    Sattler, Wiedemann, Müller and Samek 2019, "Robust and Communication-Efficient Federated Learning from Non-IID
    Data", IEEE Transactions on Neural Networks and Learning Systems, algorithm 1.
    """
    return error_feedback.error_feedback(encoder.sparse(selection.top_k(density), values.TERNARY))


def dgc(
    density: float, momentum: float = 0.9, *, max_norm: float | None = None, warm_up_rounds: int = 0
) -> Encoder[Momentum[Residual[None]]]:
    """Deep gradient compression: top-k by layer of velocities that are masked where they were sent.

    Lin, Han, Mao, Wang and Dally 2018, "Deep Gradient Compression: Reducing the Communication Bandwidth for
    Distributed Training", ICLR. Clients train without momentum of their own. The paper clips each gradient; here an
    update is clipped, which is what a client has.

    Args:
        density: Fraction of each layer that is sent after the warm-up.
        momentum: 0 to below 1.
        max_norm: Largest L2 norm of an update, before it is added to the velocity; None for no limit.
        warm_up_rounds: Rounds in which the density falls from 25 % to its value.
    """

    def at(density: float) -> Encoder[Momentum[Residual[None]]]:
        top = encoder.sparse(selection.top_k(density, scope="layer"), values.FLOAT32)
        return momentum_corrected(error_feedback.error_feedback(top), momentum)

    encoding = wrappers.warmed_up(at, 0.25, density, warm_up_rounds) if warm_up_rounds else at(density)
    return encoding if max_norm is None else wrappers.clipped(encoding, max_norm)


def random_k(density: float) -> Encoder[Residual[None]]:
    """Random entries as float32, with error feedback; a seed travels in place of the positions.

    Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory", NeurIPS.
    """
    return error_feedback.error_feedback(encoder.seeded(density, values.FLOAT32))


def qsgd(bits: int = 4) -> Encoder[None]:
    """Stochastic rounding of every entry, unbiased; see `qsgd.scheme`."""
    return encoder.quantized(qsgd_form.scheme(bits))


def terngrad() -> Encoder[None]:
    """Every entry as -1, 0 or 1 times the scale of its tensor, unbiased; see `terngrad.scheme`."""
    return encoder.quantized(terngrad_form.scheme())


def eden(bits: int = 4) -> Encoder[None]:
    """Randomized Hadamard rotation and the best levels for normal coordinates, unbiased; see `eden.scheme`."""
    return encoder.quantized(eden_form.scheme(bits))


def signsgd() -> Encoder[None]:
    """One bit an entry, for a majority vote on the server (`server.model.optimizers`); see `sign_sgd.signs`."""
    return sign_sgd.signs()


def powersgd(rank: int = 2) -> Encoder[Residual[Factored]]:
    """Matrices as products of two thin ones, with error feedback; see `powersgd.powersgd`."""
    return error_feedback.error_feedback(low_rank.powersgd(rank))


def fp16() -> Encoder[None]:
    """Every entry as float16."""
    return encoder.dense(values.FLOAT16)


def int8() -> Encoder[None]:
    """Every entry as int8, a scale for each 256."""
    return encoder.dense(values.INT8)


class Recipe(NamedTuple):
    """A recipe as scenarios look it up.

    Attributes:
        make: Function of the arguments in `takes`, all but the density optional, that returns the encoder.
        takes: Names of the arguments, out of density, bits and rank.
    """

    make: Callable[..., Encoder[Any]]
    takes: tuple[str, ...] = ()


RECIPES = {
    "fedpress": Recipe(default, ("density",)),
    "stc": Recipe(stc, ("density",)),
    "dgc": Recipe(dgc, ("density",)),
    "random_k": Recipe(random_k, ("density",)),
    "qsgd": Recipe(qsgd, ("bits",)),
    "terngrad": Recipe(terngrad),
    "eden": Recipe(eden, ("bits",)),
    "signsgd": Recipe(signsgd),
    "powersgd": Recipe(powersgd, ("rank",)),
    "fp16": Recipe(fp16),
    "int8": Recipe(int8),
}
"""Name -> recipe."""
