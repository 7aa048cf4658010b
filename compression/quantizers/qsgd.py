"""QSGD: stochastic rounding to evenly spaced levels.

Alistarh, Grubic, Li, Tomioka and Vojnovic 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding", Advances in Neural Information Processing Systems (NeurIPS), section 3.1; in buckets and with the scale of
the largest magnitude, as in its experiments. Levels take a fixed number of bits here, not Elias codes.
"""

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.coding.bits import codes_length, pack_codes, unpack_codes
from fedpress.compression.quantizers.form import Form, Scheme
from fedpress.compression.tensors.layout import BLOCK, Layout, Vector
from fedpress.compression.tensors.update import Dense

BUCKET = 512
"""Values that share a scale."""


def scheme(bits: int) -> Scheme:
    """Return QSGD with 2^(bits - 1) - 1 levels on either side of zero.

    Law: unbiased. Over the seeds, the mean of what is decoded is the update; each entry is off by at most one level,
    scale / (2^(bits - 1) - 1), where scale is the largest magnitude of its bucket of 512.

    Args:
        bits: Of a value with its sign, 2 to 8.

    Raises:
        ValueError: The bits are out of range.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.tensors.side_info import SideInfo
    >>> from fedpress.compression.encoders import encoder
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (4,), "float32"),)))
    >>> encoded = encoder.quantized(scheme(bits=3)).encode(np.array([3, -2, 1, 0], np.float32), None, side_info, 0)
    >>> encoded.decoded.dense().tolist()  # three levels: 1, 2 and 3
    [3.0, -2.0, 1.0, 0.0]
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}, expected 2 to 8: one for the sign and the others for the level")
    levels = _levels(bits)

    def pack(update: Vector, layout: Layout, seed: int) -> tuple[bytes, Dense]:
        random = np.random.default_rng(seed)
        scales = np.empty(-(-len(update) // BUCKET), "<f4")
        codes = np.empty(len(update), np.uint8)
        for start in range(0, len(update), BLOCK):
            block = update[start : start + BLOCK]
            peaks = np.maximum.reduceat(np.abs(block), np.arange(0, len(block), BUCKET))
            scales[start // BUCKET : start // BUCKET + len(peaks)] = peaks
            steps = np.repeat(peaks.astype(np.float64), BUCKET)[: len(block)]
            exact = np.divide(block, steps, out=np.zeros(len(block)), where=steps > 0) * levels
            codes[start : start + BLOCK] = np.floor(exact + random.random(len(block))) + levels
        return scales.tobytes() + pack_codes(codes, bits), _decoded(scales, codes, levels)

    return Scheme(FORM, bits, pack)


def _levels(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _length(bits: int, layout: Layout) -> int | None:
    return 4 * -(-layout.size // BUCKET) + codes_length(layout.size, bits) if 2 <= bits <= 8 else None


def _unpack(bits: int, body: memoryview, layout: Layout) -> Dense:
    scales = np.frombuffer(body, "<f4", -(-layout.size // BUCKET))
    return _decoded(scales, unpack_codes(body[scales.nbytes :], layout.size, bits), _levels(bits))


def _decoded(scales: NDArray[np.float32], codes: NDArray[np.uint8], levels: int) -> Dense:
    """Return the update of a scale for each bucket and a code for each entry, 0 to 2 * levels."""
    decoded = np.empty(len(codes), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the decoder refuses what is not finite
        units = scales.astype(np.float64) / levels
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK].astype(np.float64) - levels
            steps = np.repeat(units[start // BUCKET : start // BUCKET + BLOCK // BUCKET], BUCKET)[: len(block)]
            decoded[start : start + BLOCK] = block * steps
    return Dense(decoded)


FORM = Form("qsgd", 64, _length, _unpack)
