"""Files of arrays: what safetensors reads and writes, without copies, and any damage is found."""

import io
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from fedpress.compression.tensors import array_file
from fedpress.compression.tensors.array_file import ArrayFileError


def arrays() -> dict[str, NDArray[Any]]:
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "flags": np.array([True, False, True]),
        "count": np.array(7),
        "none": np.empty((0, 4), np.float16),
        "bytes": np.frombuffer(b"abc", np.uint8),
    }


def written(given: dict[str, NDArray[Any]], **metadata: str) -> bytes:
    return b"".join(array_file.pieces(given, metadata))


def test_what_is_written_is_read_here_and_by_safetensors() -> None:
    data = written(arrays(), ticket="4")
    found, metadata = array_file.read(io.BytesIO(data))
    theirs = safetensors.numpy.load(data)
    assert metadata == {"ticket": "4"} and found.keys() == theirs.keys() == arrays().keys()
    for name, array in arrays().items():
        for other in (found[name], theirs[name]):
            assert other.dtype == array.dtype and other.shape == array.shape and other.tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_what_safetensors_writes_is_read() -> None:
    found, metadata = array_file.read(io.BytesIO(safetensors.numpy.save(arrays(), {"a": "b"})))
    assert metadata == {"a": "b"}
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name], array)


def test_arrays_are_written_from_their_own_memory() -> None:
    large = np.zeros(1000, np.float32)
    *_, piece = array_file.pieces({"large": large}, {})
    large[3] = 1
    assert bytes(piece) == large.tobytes()


def test_a_file_that_is_cut_anywhere_is_refused() -> None:
    data = written(arrays())
    for length in range(len(data)):
        with pytest.raises(ArrayFileError):
            array_file.read(io.BytesIO(data[:length]))
    with pytest.raises(ArrayFileError, match="goes on after"):
        array_file.read(io.BytesIO(data + b"x"))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_made(entry: Any) -> None:
    text = json.dumps({"array": entry}).encode()
    with pytest.raises(ArrayFileError):
        array_file.read(io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(8)))
