"""What a teacher writes: sequences that begin as given ones do and go on as the teacher would, to distill on.

Y. Kim, A. M. Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.2: the student learns from whole
sequences that the teacher makes, in place of those of the data. There the likeliest sequence is sought by beam search;
here the likeliest next character is taken each time (temperature 0), or one is drawn.

Distillation on the given sequences is prompt-level (the paper's section 3.1, word-level): the teacher's distribution at
every place. On `continued` it is sequence-level: with LossWeights(teacher=0, labels=1) from the teacher's characters
alone, as in the paper, else from its distribution at every place of what it wrote.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpress.compression.models.distillation.settings import Continuations
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.task import Examples


def continued(teacher: nn.Module, windows: Tensor, settings: Continuations, *, seed: int) -> Examples:
    """Return windows whose first characters are the given ones', the others the teacher's.

    Each character costs a forward pass over all before it: the teacher is only known as a function of a sequence.

    Args:
        teacher: Characters (N, L) to logits of the next one at each place, (N, L, labels); asked in evaluation mode.
        windows: int64 (N, L).
        settings: How to go on.
        seed: Of the draws.

    Returns:
        Inputs int64 (N * copies, L), and at each place the character after it: of the prompt the given one, from its
        last character on what the teacher wrote.

    Raises:
        ValueError: The windows are no sequences of labels, or not longer than the prompt.
    """
    if windows.ndim != 2 or windows.is_floating_point():
        raise ValueError(f"continuations need labels (N, L), got {windows.dtype} {tuple(windows.shape)}")
    length = windows.shape[1]
    if length <= settings.prompt:
        raise ValueError(f"prompt is {settings.prompt}, expected less than the {length} characters of a window")
    modes = {module: module.training for module in teacher.modules()}
    teacher.eval()
    try:
        with reproducible(seed) as generator, torch.no_grad():
            written = windows[:, : settings.prompt].repeat(settings.copies, 1)
            while written.shape[1] <= length:
                logits = torch.cat([teacher(some)[:, -1] for some in torch.split(written, 512)])
                written = torch.cat([written, _chosen(logits, settings.temperature, generator)], dim=1)
    finally:
        for module, training in modes.items():
            module.training = training
    return Examples(written[:, :-1], written[:, 1:])


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """The next character of each sequence, (N, 1), from logits (N, labels)."""
    if temperature == 0:
        return logits.argmax(dim=1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)
