"""Writing the download file of a student, and rebuilding the student from it.

Nothing in the file is executed or unpickled: the architecture is a list of shapes, down to which the receiver cuts a
fresh model of its own. The ONNX part stays bytes until `onnx_runtime` is asked to run it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from fedpress.compression.models import adapters, architecture, forward, pretrained
from fedpress.compression.models import inputs as model_inputs
from fedpress.compression.models import outputs as model_outputs
from fedpress.compression.models.architecture import Shape, sizes
from fedpress.compression.models.bundles import bases, container, weight_coding
from fedpress.compression.models.bundles import manifest as manifests
from fedpress.compression.models.bundles.bases import BaseFiles
from fedpress.compression.models.bundles.errors import DoesNotFit, NoBase
from fedpress.compression.models.bundles.manifest import Input, Manifest
from fedpress.compression.models.bundles.reader import Bundle
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.reproducible import evaluating, reproducible
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.task import Task, class_axis_of, evaluate

MAX_INPUT_ENTRIES: Final = 1 << 24
"""Largest size of an input that a received manifest may announce."""
ROOM_BYTES: Final = 256
"""Allowance of `largest_bytes` for a signature, and for names and metrics in the manifest."""

CALIBRATION: Final = 512
"""Inputs from which the ranges of an ONNX model's activations are taken."""
TRIED_LENGTH: Final = 4
"""Length of the sequences that a rebuilt student is run on, where any will do."""
COMPARED: Final = 2048
"""Validation inputs on which an ONNX model is compared with its student."""

INPUT_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
}


@dataclass(frozen=True)
class WriteBundle:
    """Step: write the download file of a student whose weights are quantized.

    Attributes:
        onnx: Whether to include an int8 ONNX model, whose activation ranges are those on proxy data; of a bundle with a
            base in float32, without the weights (`onnx_weights.without`).
        private_key: Ed25519 key to sign with, 32 bytes; None: no signature.
        base: Pretrained weights whose tensors are named and not written; None: all are written.
    """

    onnx: bool = False
    private_key: bytes | None = None
    base: BaseFiles | None = None

    def __call__(self, student: Student, materials: Materials) -> Student:
        """Return the student with its bundle, whose size becomes that of its last stage.

        Args:
            student: Student after `quantize.Quantize`.
            materials: Models, data and seed.

        Raises:
            ValueError: The student is not quantized.
            OnnxError: It cannot be exported, or its graph answers otherwise.
        """
        if student.tensors is None:
            raise ValueError("a bundle holds quantized weights: put quantize.Quantize before writer.WriteBundle")
        validation = materials.task.data().validation
        metrics = {"validation_accuracy": evaluate(student.model, materials.task, validation).accuracy}
        graph = None
        if self.onnx:
            from fedpress.compression.models.bundles import onnx_weights  # needs an optional package

            if self.base is None:
                whole, metrics["onnx_validation_accuracy"] = _graph_of(student.model, materials.task)
            else:
                whole = _float_graph_of(student.model, materials.task)
            graph = onnx_weights.without(whole, student.tensors)
        data = save(
            student.model,
            student.tensors,
            materials.example,
            task=materials.task.name,
            tier=materials.tier,
            version=materials.version,
            metrics={name: round(figure, 4) for name, figure in metrics.items()},
            architecture=student.architecture,
            onnx=graph,
            private_key=self.private_key,
            class_axis=class_axis_of(student.model, materials.task),
            base=self.base,
        )
        *before, last = student.stages
        return replace(student, bundle=data, stages=(*before, replace(last, size_bytes=len(data))))

    def check(self, model: nn.Module, task: Task) -> None:
        """Check that a student can be written: if it is to have an ONNX model, by making that of a student.

        Args:
            model: Model of the student's form, with any weights; untouched.
            task: Task of the model.

        Raises:
            OnnxError: It cannot be exported, or its graph answers otherwise.
            NoBase: None of its frozen tensors is the base's.
        """
        if self.base is not None:
            taken_from_base(model, self.base)
        if self.onnx:
            _graph_of(model, task) if self.base is None else _float_graph_of(model, task)


def _graph_of(model: nn.Module, task: Task) -> tuple[bytes, float]:
    """Return an int8 ONNX model and its accuracy on validation data."""
    from fedpress.compression.models.bundles import onnx_export, onnx_quantization  # need an optional package

    splits = task.data()
    calibration = splits.proxy if len(splits.proxy.targets) else splits.validation
    exported = onnx_export.export(model, model_inputs.subset(splits.validation.inputs, slice(0, COMPARED)))
    few = model_inputs.subset(calibration.inputs, slice(0, CALIBRATION))
    graph = onnx_quantization.quantize_static(exported, few)
    return graph, onnx_export.require_accuracy(graph, model, task, splits.validation)


def _float_graph_of(model: nn.Module, task: Task) -> bytes:
    from fedpress.compression.models.bundles import onnx_export  # needs an optional package

    return onnx_export.export(model, model_inputs.subset(task.data().validation.inputs, slice(0, COMPARED)))


def taken_from_base(model: nn.Module, base: BaseFiles) -> dict[str, str]:
    """Return the name in a base's files of each frozen tensor of a model that is there, to the bit.

    Args:
        model: The model, with adapters as they were trained.
        base: The base.

    Raises:
        WeightsError: The files are absent or damaged.
        NoBase: There is no such tensor.
    """
    taken = pretrained.shared(model, pretrained.Weights(base.path))
    if not taken:
        raise NoBase(
            f"none of the model's tensors that are not trained is one of {base.path}: a bundle that names its base is"
            " for a model of which a part alone is trained (adapters, `trainable`)"
        )
    return taken


def save(
    student: nn.Module,
    tensors: Tensors,
    example_input: Batch,
    *,
    task: str,
    tier: str,
    version: int,
    metrics: dict[str, float],
    architecture: str | None = None,
    onnx: bytes | None = None,
    private_key: bytes | None = None,
    class_axis: int | None = 1,
    base: BaseFiles | None = None,
    entropy_coded: bool = True,
) -> bytes:
    """Return the bytes of a student's download file; equal arguments give equal bytes.

    Args:
        student: Model, run once to determine the shape of its outputs; left as it is.
        tensors: Weights by name, as `quantize.quantize` returns them.
        example_input: Batch of inputs, (N, ...).
        task: Name of the task.
        tier: Name of the class of devices that the student is for.
        version: Version of the global model.
        metrics: Figures for the manifest, as fractions.
        architecture: Name of one of the task's student architectures; None: the task's own model.
        onnx: Model for ONNX Runtime, whole or as `onnx_weights.without` returns it; None: none.
        private_key: Ed25519 key to sign with, 32 bytes; None: no signature.
        class_axis: Axis of the outputs along which the classes are; None: they are no logits of classes.
        base: Pretrained weights whose tensors are named and not written (`taken_from_base`); None: all are written.
        entropy_coded: False: use the longest forms, whose lengths do not depend on the weights.

    Raises:
        TooLarge: The student exceeds the limits of the format.
        NoBase: None of the frozen tensors is the base's.
    """
    named = None
    if base is not None:
        taken, whole = taken_from_base(student, base), quantized_tensor.dequantize(tensors)
        named = manifests.Base(sha256=base.sha256, tensors=taken, whole=bases.digest(whole))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in taken}
    coded, _ = weight_coding.pack(tensors, entropy_coded)
    manifest = Manifest(
        task=task,
        tier=tier,
        version=version,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        metrics=metrics,
        shapes={name: quantized_tensor.shape_of(tensor) for name, tensor in tensors.items()},
        sizes=sizes(student) or None,
        **_forms(student, model_inputs.first(example_input)),
        class_axis=None if class_axis == 1 else class_axis or 0,
        architecture=architecture,
        schemes={name: manifests.text_of(weight_coding.scheme_of(tensor)) for name, tensor in tensors.items()},
        base=named,
    )
    text = manifest.model_dump_json(exclude_none=True).encode()
    return container.pack(text, coded, onnx or b"", private_key)


def largest_bytes(student: nn.Module, example_input: Batch, settings: Quantization = Quantization()) -> int:
    """Return an upper bound on the size of a student's file for any weights, in bytes, without ONNX.

    The bound is the length of a real file without entropy coding plus an allowance for names and metrics; where the
    settings sparsify, that of a file with as many zeros at random positions.

    Args:
        student: Model of the student's shapes, with any weights.
        example_input: Batch of inputs, (N, ...).
        settings: Quantization of the weights.
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
    entropy_coded = settings.sparsity > 0
    data = save(student, noise, example_input, task="", tier="x", version=0, metrics={}, entropy_coded=entropy_coded)
    return len(data) + ROOM_BYTES


def rebuild(bundle: Bundle, task: Task) -> nn.Module:
    """Return the student of a bundle, in evaluation mode, with its weights dequantized.

    A fresh model of the task is cut down to the manifest's shapes, filled, and run once on zeros. Torch's generator
    is left as it was. Adapters are merged first (`adapters.merged`), but for those of a bundle with a base.

    Args:
        bundle: Opened bundle; one with a base as `bases.assembled` returns it.
        task: Task of the student.

    Raises:
        DoesNotFit: The bundle is of another task or of an architecture that this task lacks, or its shapes are not
            those of a pruned version of the model.
        NoBase: The bundle is without its base.
    """
    manifest = bundle.manifest
    if manifest.base and not manifest.base.tensors.keys() <= bundle.weights.keys():
        bases.find(manifest.base.sha256)
    if manifest.task != task.name:
        raise DoesNotFit(
            f"the bundle is of task {manifest.task!r}, expected {task.name!r}: was the wrong file fetched?"
        )
    example = _example(manifest)
    students = task.students()
    make = task.model if manifest.architecture is None else students.get(manifest.architecture)
    if make is None:
        raise DoesNotFit(
            f"task {task.name!r} has no student architecture {manifest.architecture!r}, it has"
            f" {', '.join(students) or 'none'}: made by a newer version of the task?"
        )
    with reproducible(0):
        model = make().eval() if manifest.base else adapters.merged(make()).eval()
        try:
            architecture.shrink(model, manifest.shapes, manifest.sizes)
            architecture.fill(model, quantized_tensor.dequantize(bundle.weights))
            with evaluating(model):
                output_shape = tuple(_answers(model, example).shape[1:])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DoesNotFit(
                f"the student does not fit the model of task {task.name!r}: {error}; has that model changed since?"
            ) from error
    if not fits(output_shape, manifest.output_shape):
        raise DoesNotFit(f"the rebuilt student answers {output_shape}, the manifest says {manifest.output_shape}")
    return model


def fits(shape: Shape, announced: Sequence[int | None]) -> bool:
    """Return whether a shape is the one that a manifest announces, in which None is any size.

    Args:
        shape: The shape.
        announced: That of the manifest.
    """
    return len(shape) == len(announced) and all(b in (None, a) for a, b in zip(shape, announced, strict=True))


def _example(manifest: Manifest) -> Batch:
    """Return an example of the form that a manifest announces."""
    if manifest.inputs is None:
        assert manifest.input_shape is not None and manifest.input_dtype is not None  # by the manifest's own check
        return _constant(Input(shape=manifest.input_shape, dtype=manifest.input_dtype))
    return {name: _constant(form) for name, form in manifest.inputs.items()}


def _constant(form: Input) -> Tensor:
    if form.dtype not in INPUT_DTYPES or min((size for size in form.shape if size is not None), default=1) < 1:
        raise DoesNotFit(
            f"inputs of {form.dtype} {form.shape}, expected {', '.join(INPUT_DTYPES)} and sizes of at least 1: was the"
            " bundle made by another program?"
        )
    shape = [TRIED_LENGTH if size is None else size for size in form.shape]
    if math.prod(shape) > MAX_INPUT_ENTRIES:
        raise DoesNotFit(f"inputs of shape {form.shape} have more than {MAX_INPUT_ENTRIES:,} entries")
    return torch.full((1, *shape), form.value).to(INPUT_DTYPES[form.dtype])


def _forms(model: nn.Module, example: Batch) -> dict[str, Any]:
    """Return the manifest's entries on inputs and outputs.

    Args:
        model: The student; run in evaluation mode, left as it is.
        example: Batch of one input.
    """
    with evaluating(model):
        answers = _answers(model, example)
        free = forward.free_axes(model, example)
    output_shape = tuple(None if axis in (free or ()) else size for axis, size in enumerate(answers.shape))[1:]
    if not isinstance(example, Mapping):
        dtype = str(example.dtype).removeprefix("torch.")
        return {"input_shape": tuple(example.shape[1:]), "input_dtype": dtype, "output_shape": output_shape}
    length = None if free is None else model_inputs.length(example)
    inputs = {
        name: Input(
            shape=tuple(None if axis == 0 and size == length else size for axis, size in enumerate(part.shape[1:])),
            dtype=str(part.dtype).removeprefix("torch."),
            value=float(part.flatten()[0].nan_to_num(0.0, 0.0, 0.0)),
        )
        for name, part in example.items()
    }
    return {"inputs": inputs, "output_shape": output_shape}


def _answers(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's answers; of several tensors the first."""
    return model_outputs.tensors(model_outputs.answers(model_inputs.call(model, batch)))[0]
