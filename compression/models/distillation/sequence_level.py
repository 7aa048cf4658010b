"""Sequence-level distillation: sequences that the teacher continues from given prompts.

Y. Kim, A. M. Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.2: the student learns from sequences
that the teacher generates, in place of those of the data. The paper finds the likeliest sequence by beam search; here
decoding is greedy (temperature 0) or by sampling.

Distillation on the given sequences is word-level (the paper's section 3.1): the teacher's distribution at every place.
On `continued` ones it is sequence-level: with LossWeights(teacher=0, labels=1) from the teacher's characters alone, as
in the paper, else from its distribution at every place of its own sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.distillation.settings import Continuations
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.task import Examples


def continued(teacher: nn.Module, windows: Inputs, settings: Continuations, *, seed: int) -> Examples:
    """Return windows that begin with the given prompts and continue with characters of the teacher.

    Each character takes a forward pass over all characters before it, because a teacher keeps no state.

    Args:
        teacher: Model from characters (N, L) to logits of the next one at each place, (N, L, labels); run in evaluation
            mode, left as it is.
        windows: Sequences whose first characters are the prompts, int64 (N, L).
        settings: Length of the prompts, sampling, and copies.
        seed: Seed of the sampling.

    Returns:
        Inputs int64 (N * copies, L), and targets of that shape: the next character at each place.

    Raises:
        ValueError: The windows are no sequences of labels, or not longer than the prompt.
    """
    if not isinstance(windows, Tensor):
        raise ValueError(
            f"continuations need labels (N, L) as one tensor, got inputs {model_inputs.form(windows)}: sequences by"
            " name or on a disk are not continued; leave students.data.continuations off"
        )
    if windows.ndim != 2 or windows.is_floating_point():
        raise ValueError(
            f"continuations need labels (N, L), got {windows.dtype} {tuple(windows.shape)}: is it a task of sequences?"
        )
    length = windows.shape[1]
    if length <= settings.prompt:
        raise ValueError(f"prompt is {settings.prompt}, expected less than the {length} characters of a window")
    with reproducible(seed) as generator, evaluating(teacher):
        written = windows[:, : settings.prompt].repeat(settings.copies, 1)
        while written.shape[1] <= length:
            logits = torch.cat([model_outputs.answers(teacher(batch))[:, -1] for batch in torch.split(written, 512)])
            written = torch.cat([written, _next_characters(logits, settings.temperature, generator)], dim=1)
    return Examples(written[:, :-1], written[:, 1:])


def _next_characters(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Return the next character of each sequence, (N, 1), from logits (N, labels)."""
    if temperature == 0:
        return logits.argmax(dim=1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)
