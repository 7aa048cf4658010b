"""The ClientApp of a simulation with faults: training diverges where the engine says so."""

from __future__ import annotations

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedpress.client.app import TrainingApp
from fedpress.compression.messages import records
from fedpress.simulations.conditions.faults import DIVERGES

REFERENCE = "fedpress.simulations.conditions.faulty_client:app"


def diverge(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a client train from weights that are not numbers, where its node's configuration says that it diverges."""
    if context.node_config.get(DIVERGES):
        key, arrays = records.only_arrays(message.content)
        named = records.to_numpy(arrays)  # with the sign that a learning rate of NaN would give: its bits are recorded
        message.content[key] = records.from_numpy(
            {
                name: np.full_like(array, -np.nan) if np.issubdtype(array.dtype, np.floating) else array
                for name, array in named.items()
            }
        )
    return call_next(message, context)


app = TrainingApp(diverge)
