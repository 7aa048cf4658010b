"""Measurement of OpenFL's STC pipeline on one vector, run by the interpreter of another environment without fedpress.

    python _openfl_process.py VECTOR.npy DENSITY REPETITIONS

VECTOR.npy holds float32 of one dimension. Prints a line of JSON. Nothing of fedpress is imported here. Written for
OpenFL 1.9, whose pipeline sorts the whole vector, writes three values as float32 and packs these with gzip.
"""

from __future__ import annotations

import json
import os
import sys
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

MISSING = 3
"""Exit code: OpenFL cannot be imported."""


def measure(pipeline: Any, vector: Any, density: float, repetitions: int) -> dict[str, float]:
    """Return seconds, bytes and the relative error of the k entries of largest magnitude.

    Args:
        pipeline: A pipeline of OpenFL.
        vector: float32 of shape (n,), not all zero.
        density: k/n.
        repetitions: Number of encodings timed; the median is reported.
    """
    times = []
    for _ in range(repetitions + 1):
        began = perf_counter()
        data, metadata = pipeline.forward(vector.copy())
        times.append(perf_counter() - began)
    decoded = np.asarray(pipeline.backward(data, metadata), np.float64)
    kept = np.argsort(np.abs(vector))[-int(np.ceil(density * len(vector))) :]
    error = float(np.linalg.norm(decoded[kept] - vector[kept]) / np.linalg.norm(vector[kept].astype(np.float64)))
    return {"seconds": median(times[1:]), "bytes": len(data), "relative_error": error}


def _main() -> int:
    path, density, repetitions = sys.argv[1:]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # OpenFL prints notes
    try:
        from openfl.pipelines import STCPipeline
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    pipeline = STCPipeline(p_sparsity=float(density))
    print(json.dumps(measure(pipeline, np.load(path), float(density), int(repetitions))), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
