"""Measurement of nncodec on one vector, run by the interpreter of another environment without fedpress.

    python _nncodec_process.py VECTOR.npy TARGET REPETITIONS

VECTOR.npy holds float32 of one dimension, mostly zeros; TARGET is the largest relative error. Prints a line of JSON.
Nothing of fedpress is imported here. Written for nncodec 2.1.3, which needs numpy < 2 and pandas < 3.

nncodec codes tensors; a vector is given to it as rows of 512, padded with zeros, so that it can skip empty rows. Its
quantizer is the plain one: dependent quantization (`use_dq`) was slower and larger on vectors as sparse as these.
Neither bytes nor error grow evenly with the quantizer's step, so a whole range of steps is tried.
"""

from __future__ import annotations

import json
import math
import os
import sys
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

ROW = 512
QP_DENSITY = 5
STEPS_AN_OCTAVE = 2**QP_DENSITY
SLACK = 1.02
"""Tolerance above the target error, which changes in jumps: nncodec should not lose by one."""
MISSING = 3
"""Exit code: nncodec cannot be imported."""


def measure(nnc: Any, vector: Any, target: float, repetitions: int) -> dict[str, float]:
    """Return seconds, bytes and relative error.

    Args:
        nnc: The module nncodec.nnc.
        vector: float32 of shape (n,), not all zero.
        target: Relative error. Of the settings tried, the one with the fewest bytes and at most this error (2 % more
            are tolerated) is reported; if there is none, the one with the least error.
        repetitions: Number of encodings timed; the median is reported.
    """
    tensor = np.zeros((-(-len(vector) // ROW), ROW), np.float32)
    tensor.reshape(-1)[: len(vector)] = vector
    norm = float(np.linalg.norm(tensor.astype(np.float64)))

    def encode(qp: int, search: bool) -> Any:
        return nnc.compress(
            {"0": tensor},
            bitstream_path=None,  # no file
            return_bitstream=True,
            qp=qp,
            qp_density=QP_DENSITY,
            use_dq=False,
            row_skipping=True,
            param_opt=search,  # nncodec's search for the parameters of its coder
        )

    def error(coded: Any) -> float:
        return float(np.linalg.norm(np.asarray(nnc.decompress(coded)["0"], np.float64) - tensor)) / norm

    # Of a uniform quantizer: error = step / sqrt(12) for each of the entries that are not zero.
    step = max(target, 1e-6) * norm * math.sqrt(12 / np.count_nonzero(vector))
    middle = round(STEPS_AN_OCTAVE * math.log2(step))
    tried = []
    for qp in range(middle - STEPS_AN_OCTAVE, middle + STEPS_AN_OCTAVE):
        coded = encode(qp, True)
        tried.append((len(coded), error(coded), qp))
    good = [trial for trial in tried if trial[1] <= SLACK * target]
    length, reached, qp = min(good) if good else min(tried, key=lambda trial: trial[1])

    def seconds(search: bool) -> float:
        times = []
        for _ in range(repetitions + 1):
            began = perf_counter()
            encode(qp, search)
            times.append(perf_counter() - began)
        return median(times[1:])

    # Bytes with the search, time with or without it: each is the better one for nncodec.
    return {"seconds": min(seconds(True), seconds(False)), "bytes": length, "relative_error": reached}


def _main() -> int:
    path, target, repetitions = sys.argv[1:]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nncodec prints notes, from C++ too
    try:
        import torch
        from nncodec import nnc
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    torch.set_num_threads(1)
    print(json.dumps(measure(nnc, np.load(path), float(target), int(repetitions))), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
