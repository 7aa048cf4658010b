"""Running means and variances that a client sends, where the model itself is out of reach.

Training moves a running statistic from the received value toward those of its batches: by momentum 0.1, after five
batches it is still 0.59 of what came with the model. Averaged as they are, statistics of a model that learns trail it
by many rounds. The received share is known exactly, so it can be taken out
(docs/decisions/0023-running-statistics.md).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import Layout

_COUNTER = "num_batches_tracked"


def of_training(
    received: Mapping[str, NDArray[Any]], trained: Mapping[str, NDArray[Any]], layout: Layout
) -> dict[str, NDArray[Any]]:
    """Return the running statistics of the batches of a training alone, by the names of the buffers.

    A layer's statistics are left out where there is nothing to take out, or it cannot be known: without its momentum in
    the layout, without batches or a counter of them, or where the result would hold a variance below zero (they did not
    start from what came).

    Args:
        received: Arrays of the model that training started from.
        trained: Arrays after training.
        layout: Layout of the model, with `norm_momenta`.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> mean, counter = TensorSpec("running_mean", (1,), "float32"), TensorSpec("num_batches_tracked", (), "int64")
    >>> layout = Layout((), (mean, counter), norm_momenta=(("", 0.1),))
    >>> received = {"running_mean": np.float32([8]), "num_batches_tracked": np.array(7)}
    >>> trained = {"running_mean": np.float32([0.9 * 8 + 0.1 * 3]), "num_batches_tracked": np.array(8)}
    >>> of_training(received, trained, layout)["running_mean"].round(5).tolist()
    [3.0]
    """
    momenta = dict(layout.norm_momenta)
    result: dict[str, NDArray[Any]] = {}
    for counter in layout.buffers:
        prefix, _, last = counter.name.rpartition(".")
        if last != _COUNTER or prefix not in momenta:
            continue
        before, after = int(received.get(counter.name, 0)), int(trained.get(counter.name, 0))
        momentum = momenta[prefix]
        kept = before / after if momentum is None and after else (1 - (momentum or 0.0)) ** max(0, after - before)
        if after <= before or not 0 < kept < 1:
            continue
        layer = {}
        for part in ("running_mean", "running_var"):
            name = f"{prefix}.{part}" if prefix else part
            if name in trained and name in received and np.issubdtype(trained[name].dtype, np.floating):
                wide = (trained[name].astype(np.float64) - kept * received[name].astype(np.float64)) / (1 - kept)
                layer[name] = wide.astype(trained[name].dtype)
        if all(np.isfinite(value).all() for value in layer.values()) and not any(
            (value < 0).any() for name, value in layer.items() if name.endswith("running_var")
        ):
            result |= layer
    return result
