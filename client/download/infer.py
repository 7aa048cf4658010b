"""Inference of a student on a file of inputs, in ONNX Runtime, without torch.

Nothing of the bundle is executed but its ONNX graph, by ONNX Runtime; files beside it are not read.
"""

from __future__ import annotations

import difflib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import bases, container, onnx_runtime, onnx_weights, reader
from fedpress.compression.models.bundles.manifest import Input, Manifest

BATCH: Final = 64
DTYPES: Final = ("float32", "float64", "int64", "int32", "bool")
ALONE: Final = "(the array)"
"""Name of an array in a file that holds one without a name."""


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


def answer(
    bundle: Path,
    inputs: Path,
    public_key: bytes | None = None,
    limit: int = container.LIMIT,
    base: Path | None = None,
) -> Answers:
    """Return the outputs of a bundle's student.

    Args:
        bundle: File with the bundle.
        inputs: File with the inputs, (N, ...) or a single one: .npy, or .npz with one array or one named "input"; of a
            student that takes several by name, .npz with arrays of these names, or .json with lists by name.
        public_key: Ed25519 key, 32 bytes, that must have signed the bundle; None: it need not be signed.
        limit: Most bytes that this device takes: of the file, and of what is decoded from it.
        base: Pretrained weights, for a bundle that builds on them; None: those in `bases.FOLDER` beside the bundle.

    Raises:
        BundleError: The bundle is damaged, or not signed by that key, or its base is not here.
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
    batch = _batch(inputs, manifest)
    opened = bases.with_base(opened, base, bundle.parent / bases.FOLDER)
    count = len(next(iter(batch.values())))
    assert opened.onnx is not None  # as before
    run = onnx_runtime.runner(onnx_weights.filled(opened.onnx, opened.weights))
    try:
        outputs = np.concatenate(
            [run({name: part[at : at + BATCH] for name, part in batch.items()}) for at in range(0, count, BATCH)]
        )
    except onnx_runtime.OnnxError as error:
        raise InferenceError(f"ONNX Runtime cannot run the student of {bundle} on {inputs}: {error}") from error
    announced = (count, *manifest.output_shape)
    if len(announced) != outputs.ndim or any(b not in (None, a) for a, b in zip(outputs.shape, announced, strict=True)):
        raise InferenceError(
            f"the student answers {outputs.shape[1:]}, and its manifest says {manifest.output_shape}: is the ONNX file"
            " of another student?"
        )
    axis = 1 if manifest.class_axis is None else manifest.class_axis
    return Answers(manifest, outputs, outputs.argmax(axis=axis) if 0 < axis < outputs.ndim <= 3 else None)


def _batch(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the inputs of a file by name, in the shapes and types that the student takes, each (N, ...)."""
    arrays = _load(path)
    if manifest.inputs is None:
        assert manifest.input_shape is not None and manifest.input_dtype is not None  # by the manifest's own check
        if len(arrays) != 1 and onnx_runtime.INPUT not in arrays:
            raise InferenceError(
                f"{path} has the arrays {', '.join(arrays) or 'none'}: expected one, or one that is called"
                f" {onnx_runtime.INPUT!r}"
            )
        array = arrays.get(onnx_runtime.INPUT, next(iter(arrays.values())))
        form = Input(shape=manifest.input_shape, dtype=manifest.input_dtype)
        return {onnx_runtime.INPUT: _fitting(array, form, str(path))}
    _check_names(path, arrays, manifest.inputs)
    batch = {name: _fitting(arrays[name], form, f"{path}: input {name!r}") for name, form in manifest.inputs.items()}
    counts = {name: len(part) for name, part in batch.items()}
    lengths = {name: part.shape[1] for name, part in batch.items() if manifest.inputs[name].shape[:1] == (None,)}
    for what, numbers in (("examples", counts), ("places", lengths)):
        if len(set(numbers.values())) > 1:
            given = ", ".join(f"{name!r} has {number}" for name, number in numbers.items())
            raise InferenceError(f"{path}: {given} {what}, expected as many of each")
    return batch


def _check_names(path: Path, arrays: Mapping[str, Any], forms: Mapping[str, Input]) -> None:
    takes = ", ".join(f"{name} ({form.dtype}, {_shape(form)})" for name, form in forms.items())
    if list(arrays) == [ALONE]:
        raise InferenceError(
            f"{path} is one array, and the student takes several by name: {takes}; write them with"
            " numpy.savez(path, name=array, ...)"
        )
    unknown = [name for name in arrays if name not in forms]
    for name in forms:
        if name in arrays:
            continue
        near = difflib.get_close_matches(name, unknown, 1, 0.6)
        has = f", but {near[0]!r}: is it that?" if near else f"; it has {', '.join(arrays) or 'none'}."
        raise InferenceError(f"{path} has no input {name!r}{has} The student takes {takes}")
    if unknown:
        raise InferenceError(f"{path} has {', '.join(map(repr, unknown))}, which the student does not take: {takes}")


def _shape(form: Input) -> str:
    return f"({', '.join(['N', *('any' if size is None else str(size) for size in form.shape)])})"


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name; of .npy one by the name `ALONE`."""
    try:
        if path.suffix == ".json":
            return _of_json(path)
        with files.open_regular(path) as file:  # numpy leaves a file open that it opened itself and cannot read
            content = np.load(file, allow_pickle=False)
            return {ALONE: content} if isinstance(content, np.ndarray) else {name: content[name] for name in content}
    except InferenceError:
        raise
    except OSError as error:
        raise InferenceError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InferenceError(
            f"{path} is neither .npy nor .npz with plain numbers ({error}): save inputs with numpy.save, prepared as"
            " they were for training"
        ) from None


def _of_json(path: Path) -> dict[str, NDArray[Any]]:
    """Return lists of numbers by name, as arrays."""
    try:
        content = json.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise InferenceError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise InferenceError(
            f"{path} holds a {type(content).__name__}, expected lists by the name of the input, such as"
            ' {"ids": [[1, 2]]}'
        )
    arrays = {}
    for name, value in content.items():
        try:
            array = np.array(value)
        except ValueError:  # lists of unlike lengths
            array = np.array(None)
        if array.dtype.kind not in "fiub":
            raise InferenceError(
                f"{path}: input {name!r} is no list of numbers, or of lists of one length: pad sequences to the"
                " longest, and say in the mask where they end"
            )
        arrays[name] = array
    return arrays


def _fitting(array: NDArray[Any], form: Input, what: str) -> NDArray[Any]:
    """Return inputs in the shape and type that the student takes, (N, ...)."""
    shape = form.shape
    if array.ndim == len(shape) and _fits(array.shape, shape):
        array = array[None]
    if array.ndim != len(shape) + 1 or not _fits(array.shape[1:], shape):
        alone = "any length" if shape == (None,) else str(shape)
        raise InferenceError(f"{what} is of shape {array.shape}: the student takes {_shape(form)}, or {alone} alone")
    if not len(array):
        raise InferenceError(f"{what} holds no inputs: its shape is {array.shape}")
    if 0 in array.shape:
        raise InferenceError(f"{what} holds sequences of no places: its shape is {array.shape}")
    if form.dtype not in DTYPES:
        raise InferenceError(f"the student takes {form.dtype}, expected one of {', '.join(DTYPES)}")
    wanted_dtype = np.dtype(form.dtype)
    if array.dtype != wanted_dtype:
        kind = {"f": "f", "i": "i", "u": "i", "b": "i"}.get(array.dtype.kind)
        same = kind == wanted_dtype.kind
        with np.errstate(over="ignore"):
            converted = array.astype(wanted_dtype) if same else array
        if not same or (wanted_dtype.kind == "i" and not np.array_equal(converted, array)):
            raise InferenceError(
                f"{what} holds {array.dtype}, and the student takes {wanted_dtype}: convert it as the training data"
                " were (pixels of 0 to 255 became 0 to 1?)"
            )
        array = converted
    return array


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return all(b in (None, a) for a, b in zip(shape, wanted, strict=True))
