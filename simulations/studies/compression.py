"""Study of the size and accuracy of quantized students: `python -m fedpress.simulations.studies.compression`.

A teacher is trained centrally for a short while. Once it is pruned to a budget of parameters and distilled, and that
student is quantized in each of several ways; once it keeps its architecture. Every size is that of a whole bundle file,
opened again before it is judged. Accuracies are on validation data, by which settings are chosen, and on test data,
which are for the report. Figures and reading: docs/results/students.md.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fedpress.compression.models.bundles import onnx_export, onnx_quantization, onnx_runtime, reader, writer
from fedpress.compression.models.distillation import distill
from fedpress.compression.models.distillation.settings import Distillation
from fedpress.compression.models.pruning import structural
from fedpress.compression.models.quantization import quantization_aware, quantize
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.task import Task, evaluate
from fedpress.simulations.studies.distillation import train
from fedpress.simulations.tasks import registry

CALIBRATION = 512
"""Proxy inputs for adaround and for ONNX."""
REPETITIONS = 30
LEARNING_RATE = 1e-3
"""Of training that knows of the quantization: a third of the distillation's, since it goes on from there."""
ROW = "{:34} {:>10,} {:>10,} {:>8.1f}x {:>11.2%} {:>8.2%} {:>8.1f}"
HEAD = "{:34} {:>10} {:>10} {:>9} {:>11} {:>8} {:>8}".format(
    "", "parameters", "bytes", "smaller", "validation", "test", "seconds"
)


class CompressionSetup(NamedTuple):
    """How a task is studied.

    Attributes:
        teacher_epochs: Of central training, SGD with rate 0.1 and batches of 50.
        parameters: Budget of the pruned student.
        epochs: Of its distillation.
        pruned: Settings by name, for that student; the first is the baseline.
        whole: The same for the teacher's own architecture.
    """

    teacher_epochs: int
    parameters: int
    epochs: int
    pruned: Mapping[str, Quantization]
    whole: Mapping[str, Quantization]


def named(*settings: Quantization) -> dict[str, Quantization]:
    """Return settings by a name that lists how they differ from the defaults."""

    def name(way: Quantization) -> str:
        parts = [f"int{way.bits}", way.rounding, f"by {way.group_size}" if way.group_size else ""]
        parts += ["least squares" if way.scale == "least-squares" and not way.qat_epochs else ""]
        parts += [
            f"aware {way.qat_epochs}" if way.qat_epochs else "",
            f"{way.sparsity:.0%} zero" if way.sparsity else "",
        ]
        return ", ".join(filter(None, parts))

    return {name(way): way for way in settings}


def setup(teacher_epochs: int, parameters: int, epochs: int) -> CompressionSetup:
    """Return the comparison for a task.

    Args:
        teacher_epochs: Epochs of the teacher's central training.
        parameters: Budget of the pruned student.
        epochs: Epochs of its distillation.
    """
    base = Quantization(scale="least-squares")
    trained = [replace(base, bits=bits, qat_epochs=epochs // 2) for bits in (4, 3, 2)]
    nearest = [replace(base, bits=bits) for bits in (4, 3)]
    rounded = [way for plain in nearest for way in (plain, replace(plain, rounding="adaround"))]
    groups = [Quantization(bits=4), Quantization(bits=4, group_size=64)]
    sparse = replace(base, bits=4, sparsity=0.92, qat_epochs=epochs)
    return CompressionSetup(
        teacher_epochs,
        parameters,
        epochs,
        named(Quantization(), *groups, *rounded, *trained),
        named(Quantization(), Quantization(bits=4), sparse, replace(sparse, sparsity=0.97)),
    )


SETUPS = {"digits": setup(20, 8_000, 60), "fashion-mnist": setup(5, 50_000, 20)}


class CompressionRow(NamedTuple):
    """Result of one setting.

    Attributes:
        student: Pruned ("pruned") or of the teacher's architecture ("whole").
        setting: Its name; of the first row "float32".
        parameters: How many.
        size: Of the bundle file, bytes; of the first row, 4 a parameter.
        smaller: The teacher's float32 bytes over it.
        validation, test: Accuracies of what the file holds.
        entropy: Of the codes, bytes: what no code for single codes goes below.
        zlib: Of the codes with zlib, the better of Huffman alone and all of it.
        seconds: To make it.
    """

    student: str
    setting: str
    parameters: int
    size: int
    smaller: float
    validation: float
    test: float
    entropy: float
    zlib: int
    seconds: float


def study(
    task: Task, chosen: CompressionSetup, seed: int = 0, teacher: nn.Module | None = None
) -> Iterator[CompressionRow]:
    """Yield the teacher's row, then one for each setting when it is complete.

    Args:
        task: The task.
        chosen: What is compared.
        seed: Seed of distillation and rounding.
        teacher: A trained teacher; None: one is trained.
    """
    splits = task.data()
    began = perf_counter()
    teacher = teacher or train(task, splits.train, chosen.teacher_epochs)
    dense = 4 * structural.parameters_of(teacher)
    validation, test = (evaluate(teacher, task, part).accuracy for part in (splits.validation, splits.test))
    yield CompressionRow("whole", "float32", dense // 4, dense, 1.0, validation, test, 0.0, 0, perf_counter() - began)
    settings = Distillation(epochs=chosen.epochs)
    pruned = structural.prune_to(teacher, splits.proxy.inputs[:1], chosen.parameters)
    student = distill.distill(teacher, pruned, splits.proxy.inputs, settings, seed=seed)
    for kind, start, ways in (("pruned", student, chosen.pruned), ("whole", teacher, chosen.whole)):
        for name, way in ways.items():
            began = perf_counter()
            tensors = made(task, teacher, start, way, settings, seed)
            described = {"task": task.name, "tier": "study", "version": 0, "metrics": {}}
            data = writer.save(start, tensors, splits.proxy.inputs[:1], **described)  # type: ignore[arg-type]
            seconds = perf_counter() - began
            opened = writer.rebuild(reader.open_bundle(data), task)
            validation, test = (evaluate(opened, task, part).accuracy for part in (splits.validation, splits.test))
            size, count = len(data), structural.parameters_of(start)
            yield CompressionRow(kind, name, count, size, dense / size, validation, test, *coded(tensors), seconds)


def made(
    task: Task, teacher: nn.Module, start: nn.Module, way: Quantization, settings: Distillation, seed: int
) -> Tensors:
    """Return the quantized tensors of a student.

    Args:
        task: The task.
        teacher: Teacher for quantization-aware training.
        start: The float32 student.
        way: How to quantize.
        settings: Distillation for quantization-aware training.
        seed: Seed of training and rounding.
    """
    inputs = task.data().proxy.inputs
    learner = start
    if way.qat_epochs:
        trained = replace(settings, epochs=way.qat_epochs, learning_rate=LEARNING_RATE)
        learner = distill.distill(teacher, quantization_aware.prepare_for(start, way), inputs, trained, seed=seed)
    return quantize.quantize(learner, way, inputs[:CALIBRATION], seed=seed)


def coded(tensors: Tensors) -> tuple[float, int]:
    """Return the entropy of the codes, tensor by tensor, and their length with zlib, both in bytes."""
    entropy, deflated = 0.0, 0
    for codes in (tensor.codes for tensor in tensors.values() if isinstance(tensor, Quantized)):
        _, counts = np.unique(codes, return_counts=True)
        entropy -= float(counts @ np.log2(counts / codes.size)) / 8
        huffman = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
        plain = codes.tobytes()
        deflated += min(len(zlib.compress(plain, 9)), len(huffman.compress(plain) + huffman.flush()))
    return entropy, deflated


class Speed(NamedTuple):
    """Speed of a model on one thread.

    Attributes:
        runtime: "torch", "ONNX float32" or "ONNX int8".
        size: Of the file, bytes; of torch, 4 a parameter.
        test: Accuracy.
        milliseconds: For a batch of 64, the median.
    """

    runtime: str
    size: int
    test: float
    milliseconds: float


def speeds(task: Task, model: nn.Module) -> list[Speed]:
    """Return the speed of a model in torch, and in ONNX Runtime as float32 and int8, measured in turns.

    Args:
        task: The task.
        model: A trained model.
    """
    splits = task.data()
    exported = onnx_export.export(model, splits.proxy.inputs)
    files = {"ONNX float32": exported}
    files["ONNX int8"] = onnx_quantization.quantize_static(exported, splits.proxy.inputs[:CALIBRATION])
    plain, _ = quantization_aware.finish(model)
    plain.eval()
    runners: dict[str, Any] = {"torch": lambda inputs: plain(torch.from_numpy(inputs)).numpy()}
    runners |= {name: onnx_runtime.runner(file) for name, file in files.items()}
    batch = splits.test.inputs[:64].numpy()
    times: dict[str, list[float]] = {name: [] for name in runners}
    with torch.no_grad():
        for _ in range(REPETITIONS):
            for name, run in runners.items():
                began = perf_counter()
                run(batch)
                times[name].append(perf_counter() - began)
        inputs, targets = splits.test.inputs.numpy(), splits.test.targets.numpy()
        right = {name: float((run(inputs).argmax(axis=1) == targets).mean()) for name, run in runners.items()}
    sizes = {"torch": 4 * structural.parameters_of(plain)} | {name: len(file) for name, file in files.items()}
    return [Speed(name, sizes[name], right[name], 1e3 * float(np.median(times[name]))) for name in runners]


def main() -> None:
    """Print the table of one task."""
    parser = argparse.ArgumentParser(prog="python -m fedpress.simulations.studies.compression")
    parser.add_argument("task", choices=SETUPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--teacher", type=Path, help="the teacher's weights: read, or written once it is trained")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, chosen = registry.create(given.task), SETUPS[given.task]
    teacher = task.model()
    if given.teacher and given.teacher.exists():
        teacher.load_state_dict(torch.load(given.teacher, weights_only=True))
    else:
        teacher = train(task, task.data().train, chosen.teacher_epochs)
        if given.teacher:
            torch.save(teacher.state_dict(), given.teacher)
    print(HEAD)
    rows = []
    for row in study(task, chosen, given.seed, teacher):
        rows.append(row)
        name = f"{row.student} {row.setting}"
        print(
            ROW.format(name, row.parameters, row.size, row.smaller, row.validation, row.test, row.seconds), flush=True
        )
    ran = speeds(task, teacher)
    for speed in ran:
        print(f"{speed.runtime:34} {speed.size:>21,} bytes, test {speed.test:.2%}, {speed.milliseconds:.2f} ms for 64")
    if given.json:
        figures = {"rows": [row._asdict() for row in rows], "speeds": [speed._asdict() for speed in ran]}
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
