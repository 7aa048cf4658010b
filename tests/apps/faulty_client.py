"""Clients that add a known step to the model; some of them go wrong, each in its own way."""

import os

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedpress.client.mod import compress
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.messages import orders, records
from fedpress.compression.wire import values

FAULTS = (
    "none", "none", "nan", "raises", "dense", "truncated", "ticket", "version", "weight", "no weight", "foreign",
    "buffers", "dies", "infinite payload", "no model",
)  # fmt: skip
STEP = 0.5


def fault_of(context: Context) -> str:
    return FAULTS[int(context.node_config["partition-id"])] if context.run_config.get("faults") else "none"


def saboteur(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Spoil the finished answer, as a broken client or link would."""
    reply = call_next(message, context)
    fault = fault_of(context)
    answer = reply.content.config_records.get(orders.ANSWER)
    if fault == "truncated":
        answer["update"] = answer["update"][:-1]
    elif fault == "ticket":
        answer["ticket"] += 1000
    elif fault == "version":
        answer["version"] += 1
    elif fault == "buffers":
        answer["buffers"] = answer["buffers"] + b"\0"
    elif fault == "foreign":
        reply.content = RecordDict({"hello": ConfigRecord({"what": "is this"})})
    elif fault == "infinite payload":
        answer["update"] = crafted_infinity(answer["update"])
    elif fault == "no model":
        reply.content = RecordDict({orders.ANSWER: orders.write_answer(orders.Answer(1, 0, needs_model=True))})
    elif fault == "dense":
        reply.content = RecordDict(
            {"arrays": message.content["arrays"], "metrics": records.unfolded(reply.content)["metrics"]}
        )
    return reply


def crafted_infinity(payload: bytes) -> bytes:
    """A payload with a good checksum whose first value is infinite: what only a hostile client sends."""
    import struct
    import zlib

    body = payload[:18] + payload[22:-4] + struct.pack("<f", np.inf)
    return body[:18] + struct.pack("<I", zlib.crc32(body)) + body[18:]


app = ClientApp(
    mods=[
        saboteur,
        compress(error_feedback.error_feedback(encoder.sparse(selection.top_k(1.0), values.FLOAT32))),
    ]
)


@app.train()
def train(message: Message, context: Context) -> Message:
    fault = fault_of(context)
    if fault == "raises":
        raise RuntimeError("this client always fails")
    if fault == "dies":
        os._exit(7)
    arrays = records.to_numpy(message.content["arrays"])
    arrays["weight"] = arrays["weight"] + np.float32(np.nan if fault == "nan" else STEP)
    arrays["norm.running_mean"] = arrays["norm.running_mean"] + np.float32(1)
    arrays["norm.num_batches_tracked"] = arrays["norm.num_batches_tracked"] + context.node_id
    weight = {"weight": -5, "no weight": None}.get(fault, 10)
    metrics = MetricRecord({"loss": 1.0} if weight is None else {"loss": 1.0, "num-examples": weight})
    content = RecordDict({"arrays": records.from_numpy(arrays), "metrics": metrics})
    return Message(content, reply_to=message)
