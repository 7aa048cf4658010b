"""The download file of a student: what it is, and its weights, in one file that proves itself whole.

The file is opened without running or unpickling anything that it carries: the architecture is a list of shapes that
a model which the receiver has already is cut down to. The ONNX part is bytes until somebody asks for it to be run.

`container` has the layout of the file, `weight_coding` that of the weights, `manifest` what is said about them;
`reader` verifies a file without torch. What can be wrong is in `errors`, one class for each fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models import architecture
from fedpress.compression.models.architecture import Shape
from fedpress.compression.models.bundles import container, weight_coding
from fedpress.compression.models.bundles import manifest as manifests
from fedpress.compression.models.bundles.errors import DoesNotFit
from fedpress.compression.models.bundles.manifest import Manifest
from fedpress.compression.models.bundles.reader import Bundle as Bundle
from fedpress.compression.models.bundles.reader import open_bundle as open_bundle
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import reproducible
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.task import Task, evaluate

MAX_INPUT_ENTRIES: Final = 1 << 24
ROOM_BYTES: Final = 256
"""What `largest_bytes` leaves for a signature, and for names and metrics in the manifest."""

INPUT_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.int64, torch.int32)
}


@dataclass(frozen=True)
class WriteBundle:
    """Step: the download file of a student whose weights are quantized.

    Attributes:
        onnx: Whether it holds an int8 ONNX file to run as well, with the ranges that activations have on proxy data.
        private_key: Ed25519, 32 bytes, that it is signed with; None: it is not.
    """

    onnx: bool = False
    private_key: bytes | None = None

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student with its bundle, whose size is that of its last stage.

        Raises:
            ValueError: No step before has quantized it.
        """
        if student.tensors is None:
            raise ValueError("a bundle holds quantized weights: put quantize.Quantize before writer.WriteBundle")
        splits = materials.task.data()
        accuracy = evaluate(student.model, materials.task, splits.validation).accuracy
        data = save(
            student.model,
            student.tensors,
            materials.example,
            task=materials.task.name,
            tier=materials.tier,
            version=materials.version,
            metrics={"validation_accuracy": round(accuracy, 4)},
            architecture=student.architecture,
            onnx=self._runnable(student, materials) if self.onnx else None,
            private_key=self.private_key,
        )
        *before, last = student.stages
        return replace(student, bundle=data, stages=(*before, replace(last, size_bytes=len(data))))

    def _runnable(self, student: Student, materials: Materials) -> bytes:
        from fedpress.compression.models.bundles import onnx_export  # needs a package that nothing else here does

        splits = materials.task.data()
        calibration = splits.proxy.inputs if len(splits.proxy.inputs) else splits.validation.inputs
        return onnx_export.quantize_static(onnx_export.export(student.model, materials.example), calibration[:512])


def save(
    student: nn.Module,
    tensors: Tensors,
    example_input: Tensor,
    *,
    task: str,
    tier: str,
    version: int,
    metrics: dict[str, float],
    architecture: str | None = None,
    onnx: bytes | None = None,
    private_key: bytes | None = None,
    entropy_coded: bool = True,
) -> bytes:
    """Return the download file of a student: the same bytes for the same arguments.

    Args:
        student: The model, run once to note the shape of its answers.
        tensors: Its tensors, as `quantize.quantize` gives them.
        example_input: A batch as the model is called with, (N, ...).
        task, tier, version, metrics, architecture: For the manifest.
        onnx: A model to run, as `onnx_export` makes it.
        private_key: Ed25519, 32 bytes, to sign the file with.
        entropy_coded: False: the longest form, whose length does not depend on the weights.

    Raises:
        TooLarge: The student is beyond the limits of the format.
    """
    coded, _ = weight_coding.pack(tensors, entropy_coded)
    manifest = Manifest(
        task=task,
        tier=tier,
        version=version,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        metrics=metrics,
        shapes={name: quantized_tensor.shape_of(tensor) for name, tensor in tensors.items()},
        input_shape=tuple(example_input.shape[1:]),
        input_dtype=str(example_input.dtype).removeprefix("torch."),
        output_shape=_answer_shape(student, example_input[:1]),
        architecture=architecture,
        schemes={name: manifests.text_of(weight_coding.scheme_of(tensor)) for name, tensor in tensors.items()},
    )
    text = manifest.model_dump_json(exclude_none=True).encode()
    return container.pack(text, coded, onnx or b"", private_key)


def largest_bytes(student: nn.Module, example_input: Tensor, settings: Quantization = Quantization()) -> int:
    """The most that a student's file will come to, whatever its weights turn out to be, in bytes; without ONNX.

    It is the length of a real file without its entropy coding, and room for names and metrics. Where the settings ask
    for zeros, a file with so many zeros at random places.
    """
    draw = np.random.default_rng(0)
    noise: Tensors = {}
    for name, tensor in architecture.tensors(student).items():
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point() or len(shape) < 2:
            noise[name] = draw.random(shape, np.float32) if tensor.is_floating_point() else tensor.cpu().numpy()
            continue
        codes = draw.integers(1, quantized_tensor.levels(settings.bits), shape, np.int8, endpoint=True)
        codes *= draw.choice(np.array([-1, 1], np.int8), shape)
        codes[draw.random(shape) < settings.sparsity] = 0
        scales = draw.random((shape[0], quantized_tensor.groups_of(shape, settings.group_size)), np.float32)
        noise[name] = Quantized(codes, scales, settings.bits, settings.group_size)
    made = {"task": "", "tier": "x", "version": 0, "metrics": {}}
    coded = settings.sparsity > 0
    return len(save(student, noise, example_input, **made, entropy_coded=coded)) + ROOM_BYTES  # type: ignore[arg-type]


def rebuild(bundle: Bundle, task: Task) -> nn.Module:
    """Return the student, in evaluation mode, with its weights dequantized.

    A fresh model of the task is cut down to the manifest's shapes, filled, and run once on zeros. Torch's generator
    is left as it was.

    Raises:
        DoesNotFit: The bundle is of another task or an architecture that this task does not have, or its shapes are not
            those of a pruned version of the model.
    """
    manifest = bundle.manifest
    if manifest.task != task.name:
        raise DoesNotFit(
            f"the bundle is of task {manifest.task!r}, expected {task.name!r}: was the wrong file fetched?"
        )
    if manifest.input_dtype not in INPUT_DTYPES or min(manifest.input_shape, default=1) < 1:
        raise DoesNotFit(f"inputs of {manifest.input_dtype} {manifest.input_shape}: no model takes such")
    if math.prod(manifest.input_shape) > MAX_INPUT_ENTRIES:
        raise DoesNotFit(f"inputs of shape {manifest.input_shape} have more than {MAX_INPUT_ENTRIES:,} entries")
    students = task.students()
    make = task.model if manifest.architecture is None else students.get(manifest.architecture)
    if make is None:
        raise DoesNotFit(
            f"task {task.name!r} has no student architecture {manifest.architecture!r}, it has"
            f" {', '.join(students) or 'none'}: made by a newer version of the task?"
        )
    with reproducible(0):
        model = make().eval()
        try:
            architecture.shrink(model, manifest.shapes)
            architecture.fill(model, quantized_tensor.dequantize(bundle.weights))
            example = torch.zeros((1, *manifest.input_shape), dtype=INPUT_DTYPES[manifest.input_dtype])
            answer = _answer_shape(model, example)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DoesNotFit(
                f"the student does not fit the model of task {task.name!r}: {error}; has that model changed since?"
            ) from error
    if answer != manifest.output_shape:
        raise DoesNotFit(f"the rebuilt student answers {answer}, the manifest says {manifest.output_shape}")
    return model


def _answer_shape(model: nn.Module, example: Tensor) -> Shape:
    """Shape of one answer, without the batch, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        answer = model(example)
    for module, training in modes.items():
        module.training = training
    return tuple(answer.shape[1:])
