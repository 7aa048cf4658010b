"""States in a form that can be compared."""

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch


def comparable(value: Any) -> Any:
    """Return a state with its arrays as type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype, value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: comparable(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, list | tuple | deque):
        return [type(value), *map(comparable, value)]
    return value
