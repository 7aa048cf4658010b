"""TernGrad: each entry becomes -s, 0 or s at random, with s the largest magnitude of its tensor.

Wen, Xu, Yan, Wu, Wang, Chen and Li 2017, "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep
Learning", Advances in Neural Information Processing Systems (NeurIPS), sections 3.1 and 3.3.
"""

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.quantizers.form import Form, Scheme
from fedpress.compression.tensors.layout import BLOCK, Layout, Vector
from fedpress.compression.tensors.update import Dense

DIGITS = 5
"""Entries in a byte: 3^5 = 243."""

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def scheme(clip: float | None = None) -> Scheme:
    """Return TernGrad: 1.6 bits an entry, and one float32 for each tensor.

    Law: unbiased without clipping. Over the seeds, the mean of what is decoded is the update.

    Args:
        clip: Limit entries to so many standard deviations of their tensor, 2.5 in the paper: a smaller s and less
            noise, at the price of a bias. None for no limit.

    Raises:
        ValueError: The limit is not a finite number above 0.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> from fedpress.compression.tensors.side_info import SideInfo
    >>> from fedpress.compression.encoders import encoder
    >>> side_info = SideInfo(Layout((TensorSpec("weight", (4,), "float32"),)))
    >>> encoded = encoder.quantized(scheme()).encode(np.array([3, -3, 0, 0], np.float32), None, side_info, 0)
    >>> encoded.decoded.dense().tolist()
    [3.0, -3.0, 0.0, 0.0]
    """
    if clip is not None and not 0 < clip < np.inf:
        raise ValueError(f"clip is {clip}, expected a finite number of standard deviations above 0, or None")

    def pack(update: Vector, layout: Layout, seed: int) -> tuple[bytes, Dense]:
        random = np.random.default_rng(seed)
        scales = np.zeros(len(layout.parameters), "<f4")
        digits = np.ones(-(-len(update) // DIGITS) * DIGITS, np.uint8)
        for index, (first, last) in enumerate(zip(layout.offsets[:-1], layout.offsets[1:], strict=True)):
            tensor = update[first:last]
            peak = float(np.abs(tensor).max(initial=0))
            if clip is not None and peak:
                peak = min(peak, clip * float(tensor.std(dtype=np.float64)))
            scales[index] = peak
            for start in range(first, last, BLOCK):
                block = update[start : min(last, start + BLOCK)]
                drawn = random.random(len(block)) * peak < np.abs(block)
                digits[start : start + len(block)] = 1 + np.sign(block) * drawn
        packed = (digits.reshape(-1, DIGITS) @ _POWERS).tobytes()
        return scales.tobytes() + packed, _decoded(scales, digits, layout)

    return Scheme(FORM, 0, pack)


def _length(parameter: int, layout: Layout) -> int | None:
    return 4 * len(layout.parameters) + -(-layout.size // DIGITS) if parameter == 0 else None


def _unpack(parameter: int, body: memoryview, layout: Layout) -> Dense:
    scales = np.frombuffer(body, "<f4", len(layout.parameters))
    packed = np.frombuffer(body, np.uint8, -1, scales.nbytes)
    return _decoded(scales, (packed[:, None] // _POWERS % 3).reshape(-1), layout)


def _decoded(scales: NDArray[np.float32], digits: NDArray[np.uint8], layout: Layout) -> Dense:
    """Return the update of a scale for each tensor and a digit for each entry: 0, 1 or 2 for -s, 0 or s."""
    decoded = digits[: layout.size].astype(np.float32)
    decoded -= 1
    with np.errstate(invalid="ignore"):  # the decoder refuses what is not finite
        for scale, first, last in zip(scales, layout.offsets[:-1], layout.offsets[1:], strict=True):
            decoded[first:last] *= scale
    return Dense(decoded)


FORM = Form("terngrad", 65, _length, _unpack)
