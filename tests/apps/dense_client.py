"""The same client twice: plain, and with a dense float32 payload."""

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpress.client.mod import compress
from fedpress.compression.encoders import encoder
from fedpress.compression.messages import records

plain = ClientApp()
compressed = ClientApp(mods=[compress(encoder.dense())])


@plain.train()
@compressed.train()
def train(message: Message, context: Context) -> Message:
    arrays = records.to_numpy(message.content["arrays"])
    draw = np.random.default_rng(context.node_id)
    arrays["weight"] = arrays["weight"] + draw.standard_normal(arrays["weight"].shape, dtype=np.float32)
    arrays["norm.running_mean"] = arrays["norm.running_mean"] * np.float32(0.9) + np.float32(context.node_id)
    metrics = MetricRecord({"num-examples": 10 * context.node_id})
    return Message(RecordDict({"arrays": records.from_numpy(arrays), "metrics": metrics}), reply_to=message)
