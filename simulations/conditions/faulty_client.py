"""ClientApp of a simulation with faults: training diverges where the engine says so."""

from __future__ import annotations

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedpress.client.app import TrainingApp
from fedpress.compression.messages import records
from fedpress.simulations.conditions.faults import DIVERGES

REFERENCE = "fedpress.simulations.conditions.faulty_client:app"


def diverge(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Replace the weights in an order by NaN where the node's configuration says that the client diverges.

    Args:
        message: An order to train.
        context: Of the client.
        call_next: The next mod, or the app itself.
    """
    if context.node_config.get(DIVERGES):
        key, arrays = records.only_arrays(message.content)
        named = records.to_numpy(arrays)  # negative, as by a learning rate of NaN: payloads are compared by bits
        message.content[key] = records.from_numpy(
            {
                name: np.full_like(array, -np.nan) if np.issubdtype(array.dtype, np.floating) else array
                for name, array in named.items()
            }
        )
    return call_next(message, context)


app = TrainingApp(diverge)
