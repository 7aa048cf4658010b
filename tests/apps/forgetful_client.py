"""A client that works, until in round 3 what it has kept is gone, damaged, or that of a backup."""

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from tests.apps.faulty_client import train

from fedpress.client.mod import compress
from fedpress.client.state import stores
from fedpress.client.state.stores import Stored
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.messages import orders
from fedpress.compression.wire import values


def accident(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    order = orders.read_order(message.content)
    store = stores.open_store(context, order.federation)
    found = store.load()
    if order.round == 2:
        context.state["backup"] = context.state.array_records["fedpress.state"]
        context.state["backup.meta"] = context.state.config_records["fedpress.state.meta"]
    if order.round == 3 and found is not None:
        fault = context.run_config["fault"]
        if fault == "forgets":
            context.state = RecordDict()
        elif fault == "damaged":
            held = found.arrays["replica"] + np.int32(1)
            store.save(Stored({**found.arrays, "replica": held}, found.meta))
        elif fault == "old":
            context.state["fedpress.state"] = context.state["backup"]
            context.state["fedpress.state.meta"] = context.state["backup.meta"]
    return call_next(message, context)


app = ClientApp(
    mods=[accident, compress(error_feedback.error_feedback(encoder.sparse(selection.top_k(0.5), values.FLOAT32)))]
)
app.train()(train)
