"""nncodec, the reference software of ISO/IEC 15938-17, beside our codec: it runs in an environment of its own.

nncodec needs a numpy older than fedpress does. So `nncodec_process.py` is started with another interpreter and given
the entries that our payload holds, as they were before rounding, with zeros elsewhere.
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
from fedpress.compression.vector import Vector
from fedpress.simulations import nncodec_process

SCRIPT = Path(nncodec_process.__file__)


class NncodecError(FedpressError, ValueError):
    """The interpreter given cannot run nncodec."""


class Measured(NamedTuple):
    """What nncodec made of the same entries.

    Attributes:
        seconds: quantising and coding alone, median; no residual and no selection, which our client step contains.
        bytes: length of its bitstream.
        relative_error: norm(decoded - kept) / norm(kept).
    """

    seconds: float
    bytes: int
    relative_error: float


def measure(python: Path | str, kept: Vector, target: float, repetitions: int) -> Measured:
    """Let nncodec code a vector in its own environment.

    Args:
        python: The interpreter of an environment with nncodec.
        kept: The entries to send, zeros elsewhere; shape (n,), not all zero.
        target: The relative error that should not be exceeded; see `nncodec_process.measure`.
        repetitions: Encodings timed.

    Raises:
        NncodecError: No such interpreter, no nncodec in it, or nncodec failed.
    """
    with tempfile.TemporaryDirectory(prefix="fedpress-nncodec-") as folder:
        path = Path(folder) / "kept.npy"
        np.save(path, kept)
        # Isolated: the folder of the script and PYTHONPATH hold modules that are not meant for that environment.
        command = [str(python), "-I", str(SCRIPT), str(path), str(target), str(repetitions)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        except OSError as error:
            raise NncodecError(f"--nncodec-python {python}: cannot be started: {error.strerror}") from None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == nncodec_process.NO_NNCODEC or "No module named 'numpy'" in last:
        raise NncodecError(
            f"--nncodec-python {python}: nncodec cannot be imported there ({last}); expected the interpreter of an"
            " environment made with: pip install nncodec==2.1.3 'numpy<2' 'pandas<3'"
        )
    if done.returncode:
        raise NncodecError(f"--nncodec-python {python}: nncodec failed with exit code {done.returncode}: {last}")
    return Measured(**json.loads(done.stdout))
