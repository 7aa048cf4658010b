"""A plain Flower app whose messages carry 1 kB each way: what `fedpress bench wire` compares with."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

PAYLOAD = 1000
"""Bytes of the model's only array."""

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with weights that differ from the received ones, as trained ones do."""
    weights = message.content.array_records["arrays"]["weight"].numpy()
    changed = weights + np.float32(1 + int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0})
    content = RecordDict({"arrays": ArrayRecord({"weight": Array(changed)}), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes."""
    nodes, rounds = int(context.run_config["nodes"]), int(context.run_config["rounds"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    initial = ArrayRecord({"weight": Array(np.zeros(PAYLOAD // 4, np.float32))})
    strategy.start(grid, initial, num_rounds=rounds, train_config=ConfigRecord())
