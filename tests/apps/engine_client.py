"""Clients for the tests of the engine: they count, sum, fail and die."""

import os

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("count")
def count(message: Message, context: Context) -> Message:
    seen = context.state.metric_records.get("seen") or MetricRecord({"count": 0})
    seen["count"] += 1
    context.state["seen"] = seen
    metrics = MetricRecord({"count": seen["count"], "machine": int(os.environ.get("MACHINE", "0"))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("sum")
def add_up(message: Message, context: Context) -> Message:
    arrays: ArrayRecord = message.content["arrays"]
    total = float(arrays["w"].numpy().astype(float).sum())
    del arrays["w"]
    return Message(RecordDict({"metrics": MetricRecord({"sum": total})}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ZeroDivisionError("as asked")


@app.query("die")
def die(message: Message, context: Context) -> Message:
    os._exit(9)
