"""What the tests of schemes and encoders have in common: layouts by shape, vectors, and what a payload decodes to."""

import numpy as np

from fedpress.compression.encoders import encoder
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo


def side_info_of(*shapes: tuple[int, ...]) -> SideInfo:
    """Return the side information of float32 tensors of these shapes, named by their number."""
    return SideInfo(Layout(tuple(TensorSpec(str(index), shape, "float32") for index, shape in enumerate(shapes))))


def normal(n: int, seed: int = 0) -> Vector:
    """Return normal entries, shape (n,)."""
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def decoded_of(chosen: Encoder[None], vector: Vector, side_info: SideInfo, seed: int = 0) -> Vector:
    """Return what a server reads from the payload of a vector, shape (n,)."""
    return encoder.decode(chosen.encode(vector.copy(), None, side_info, seed).payload, side_info).dense()
