"""Measurements of other codecs, each in an environment of its own: nncodec (ISO/IEC 15938-17) and OpenFL's STC.

They need versions of libraries that conflict with fedpress's. So a script, which imports nothing of fedpress, runs with
another interpreter on a vector in a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors.layout import Vector
from fedpress.simulations.benchmarks import _nncodec_process, _openfl_process


class OutsideError(FedpressError, ValueError):
    """The interpreter given cannot run the codec."""


class Codec(NamedTuple):
    """Another codec.

    Attributes:
        name: Name, also of the option `--NAME-python`.
        script: Script that measures it.
        missing: Exit code of the script where the codec cannot be imported.
        install: Arguments of `pip install`.
    """

    name: str
    script: Path
    missing: int
    install: str


NNCODEC = Codec(
    "nncodec", Path(_nncodec_process.__file__), _nncodec_process.MISSING, "nncodec==2.1.3 'numpy<2' 'pandas<3'"
)
"""nncodec, on the entries of our payload with at most our relative error: `_nncodec_process.measure`."""
OPENFL = Codec("openfl", Path(_openfl_process.__file__), _openfl_process.MISSING, "openfl==1.9")
"""OpenFL's STC, which selects from the whole vector at our density: `_openfl_process.measure`."""


class Measured(NamedTuple):
    """Figures of another codec on a vector.

    Attributes:
        seconds: Median time to encode.
        bytes: Length of the encoded vector.
        relative_error: norm(decoded - kept) / norm(kept), over the entries sent.
    """

    seconds: float
    bytes: int
    relative_error: float


def measure(codec: Codec, python: Path | str, vector: Vector, setting: float, repetitions: int) -> Measured:
    """Measure a codec in its own environment.

    Args:
        codec: The codec.
        python: Interpreter of an environment with it.
        vector: Shape (n,), not all zero.
        setting: Second argument of its script: nncodec's largest relative error, OpenFL's density.
        repetitions: Number of encodings timed.

    Raises:
        OutsideError: No such interpreter, no such codec in it, or it failed.
    """
    option = f"--{codec.name}-python {python}"
    with tempfile.TemporaryDirectory(prefix=f"fedpress-{codec.name}-") as folder:
        path = Path(folder) / "vector.npy"
        np.save(path, vector)
        # Isolated: the folder of the script and PYTHONPATH hold modules that are not meant for that environment.
        command = [str(python), "-I", str(codec.script), str(path), str(setting), str(repetitions)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        except OSError as error:
            raise OutsideError(f"{option}: cannot be started: {error.strerror}") from None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == codec.missing or "No module named 'numpy'" in last:
        raise OutsideError(
            f"{option}: {codec.name} cannot be imported there ({last}); expected the interpreter of an environment"
            f" made with: pip install {codec.install}"
        )
    if done.returncode:
        raise OutsideError(f"{option}: {codec.name} failed with exit code {done.returncode}: {last}")
    return Measured(**json.loads(done.stdout))
