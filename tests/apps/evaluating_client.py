"""A client whose evaluation says which model it sees."""

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tests.apps.faulty_client import train

from fedpress.client.mod import compress
from fedpress.compression.encoders import encoder
from fedpress.compression.messages import records
from fedpress.compression.wire import values

app = ClientApp(mods=[compress(encoder.dense(values.FLOAT32))])
app.train()(train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    arrays = records.to_numpy(message.content["arrays"])
    seen = {"sum": float(arrays["weight"].sum(dtype=np.float64)), "mean": float(arrays["norm.running_mean"].mean())}
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, **seen})}), reply_to=message)
