"""Inference of a student on a file of inputs, in ONNX Runtime, without torch.

Nothing of the bundle is executed but its ONNX graph, by ONNX Runtime; files beside it are not read.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import container, onnx_runtime, reader
from fedpress.compression.models.bundles.manifest import Manifest

BATCH: Final = 64
DTYPES: Final = ("float32", "float64", "int64", "int32")


class InferenceError(FedpressError, ValueError):
    """The bundle cannot be run, or the inputs do not fit its student."""


class Answers(NamedTuple):
    """Outputs of a student.

    Attributes:
        manifest: Manifest of the student.
        outputs: Outputs, float32 (N, ...).
        classes: Index of the largest output along the manifest's axis of classes, (N,) or, for sequences, (N, L); None:
            there is no such axis.
    """

    manifest: Manifest
    outputs: NDArray[np.float32]
    classes: NDArray[np.int64] | None


def answer(bundle: Path, inputs: Path, public_key: bytes | None = None, limit: int = container.LIMIT) -> Answers:
    """Return the outputs of a bundle's student.

    Args:
        bundle: File with the bundle.
        inputs: File with the inputs, (N, ...) or a single one: .npy, or .npz with one array or one named "input".
        public_key: Ed25519 key, 32 bytes, that must have signed the bundle; None: it need not be signed.
        limit: Most bytes that this device takes: of the file, and of what is decoded from it.

    Raises:
        BundleError: The bundle is damaged, or not signed by that key.
        InferenceError: It holds no ONNX file, or the inputs do not fit.
        OnnxError: ONNX Runtime does not take the file.
    """
    try:
        data = files.read_regular(bundle, limit)
    except OSError as error:
        raise InferenceError(f"cannot read {bundle}: {error.strerror or error}") from None
    opened = reader.open_bundle(data, public_key, limit)
    if opened.onnx is None:
        raise InferenceError(
            f"{bundle} holds weights, and no ONNX file to run; a scenario with `students: {{quantize: {{onnx: true}}}}`"
            " makes bundles with one"
        )
    manifest = opened.manifest
    batch = _fitting(_load(inputs), manifest, inputs)
    run = onnx_runtime.runner(opened.onnx)
    try:
        outputs = np.concatenate([run(batch[at : at + BATCH]) for at in range(0, len(batch), BATCH)])
    except onnx_runtime.OnnxError as error:
        raise InferenceError(f"ONNX Runtime cannot run the student of {bundle} on {inputs}: {error}") from error
    if outputs.shape != (len(batch), *manifest.output_shape):
        raise InferenceError(
            f"the student answers {outputs.shape[1:]}, and its manifest says {manifest.output_shape}: is the ONNX file"
            " of another student?"
        )
    axis = 1 if manifest.class_axis is None else manifest.class_axis
    return Answers(manifest, outputs, outputs.argmax(axis=axis) if 0 < axis < outputs.ndim <= 3 else None)


def _load(path: Path) -> NDArray[Any]:
    try:
        with files.open_regular(path) as file:  # numpy leaves a file open that it opened itself and cannot read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            if len(names) != 1 and onnx_runtime.INPUT not in names:
                raise InferenceError(
                    f"{path} has the arrays {', '.join(names) or 'none'}: expected one, or one that is called"
                    f" {onnx_runtime.INPUT!r}"
                )
            array: NDArray[Any] = content[onnx_runtime.INPUT if onnx_runtime.INPUT in names else names[0]]
            return array
    except InferenceError:
        raise
    except OSError as error:
        raise InferenceError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InferenceError(
            f"{path} is neither .npy nor .npz with plain numbers ({error}): save inputs with numpy.save, prepared as"
            " they were for training"
        ) from None


def _fitting(array: NDArray[Any], manifest: Manifest, path: Path) -> NDArray[Any]:
    """Return the inputs in the shape and type that the student takes, (N, ...)."""
    shape = manifest.input_shape
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        wanted = ", ".join(["N", *map(str, shape)])
        raise InferenceError(f"{path} is of shape {array.shape}: the student takes ({wanted}), or {shape} alone")
    if not len(array):
        raise InferenceError(f"{path} holds no inputs: its shape is {array.shape}")
    if manifest.input_dtype not in DTYPES:
        raise InferenceError(f"the student takes {manifest.input_dtype}, expected one of {', '.join(DTYPES)}")
    wanted_dtype = np.dtype(manifest.input_dtype)
    if array.dtype != wanted_dtype:
        same = {"f": "f", "i": "i", "u": "i"}.get(array.dtype.kind) == wanted_dtype.kind
        with np.errstate(over="ignore"):
            converted = array.astype(wanted_dtype) if same else array
        if not same or (wanted_dtype.kind == "i" and not np.array_equal(converted, array)):
            raise InferenceError(
                f"{path} holds {array.dtype}, and the student takes {wanted_dtype}: convert it as the training data"
                " were (pixels of 0 to 255 became 0 to 1?)"
            )
        array = converted
    return array
