"""Codecs of other environments: an interpreter that lacks one, fails, or answers."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedpress.simulations.benchmarks import codec, outside

VECTOR = np.arange(4, dtype=np.float32)


def interpreter(folder: Path, script: str) -> Path:
    """A program in place of Python, which is called with `-I SCRIPT VECTOR.npy SETTING REPETITIONS`."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "option, python, message",
    [
        ("nncodec", sys.executable, r"nncodec cannot be imported there \(No module named 'nncodec'\).*'numpy<2'"),
        ("nncodec", "none/python", "--nncodec-python none/python: cannot be started: No such file"),
        ("openfl", sys.executable, r"openfl cannot be imported there \(No module named 'openfl'\).*openfl==1.9"),
    ],
)
def test_an_interpreter_without_the_codec_is_named(option: str, python: str, message: str) -> None:
    with pytest.raises(outside.OutsideError, match=message):
        codec.run(1000, 0.01, repetitions=1, **{f"{option}_python": Path(python)})  # type: ignore[arg-type]


def test_what_it_measured_is_read(tmp_path: Path) -> None:
    script = """test "$1" = -I && test -f "$2" && test -f "$3" && test "$OMP_NUM_THREADS" = 1 || exit 9
echo "{\\"seconds\\": $5, \\"bytes\\": 7, \\"relative_error\\": $4}" """
    measured = outside.measure(outside.OPENFL, interpreter(tmp_path, script), VECTOR, 0.25, 3)
    assert measured == outside.Measured(seconds=3, bytes=7, relative_error=0.25)


def test_a_failure_is_named_with_its_last_line(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "echo first >&2; echo last >&2; exit 4")
    with pytest.raises(outside.OutsideError, match="nncodec failed with exit code 4: last"):
        outside.measure(outside.NNCODEC, python, VECTOR, 0.1, 1)
    with pytest.raises(outside.OutsideError, match="nncodec failed with exit code 4: it said nothing"):
        outside.measure(outside.NNCODEC, interpreter(tmp_path, "exit 4"), VECTOR, 0.1, 1)
