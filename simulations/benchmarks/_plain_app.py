"""Flower app with a model of 1 kB, plain and with fedpress's mod and strategy, for `bench wire` and `bench warm`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedpress.client.mod import compress
from fedpress.compression.encoders import encoder, selection
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.wire import values

PAYLOAD = 1000
"""Bytes of the model's only array."""

LAYOUT = Layout((TensorSpec("weight", (PAYLOAD // 4,), "float32"),))

client = ClientApp()
server = ServerApp()
sparse_client = ClientApp(mods=[compress(encoder.sparse(selection.top_k(0.1), values.TERNARY), layout=LAYOUT)])
sparse_server = ServerApp()


@client.train()
@sparse_client.train()
def train(message: Message, context: Context) -> Message:
    """Reply with weights that differ from the received ones, like trained ones.

    Args:
        message: The message with the weights.
        context: The node, which has a partition-id.
    """
    weights = message.content.array_records["arrays"]["weight"].numpy()
    changed = weights + np.float32(1 + int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0})
    content = RecordDict({"arrays": ArrayRecord({"weight": Array(changed)}), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes.

    Args:
        grid: Flower's connection to the nodes.
        context: Configuration of the run: nodes, rounds, times (a file, optional).
    """
    _run(FedAvg, grid, context)


@sparse_server.main()
def sparse_main(grid: Grid, context: Context) -> None:
    """Run SparseFed over all nodes.

    Args:
        grid: As for `main`.
        context: As for `main`.
    """
    from fedpress.server.strategies.sparse_fed import SparseFed  # needs torch; nodes, which read this file too, do not

    _run(partial(SparseFed, layout=LAYOUT), grid, context)


def _run(strategy: Callable[..., Strategy], grid: Grid, context: Context) -> None:
    nodes, rounds = int(context.run_config["nodes"]), int(context.run_config["rounds"])
    initial = ArrayRecord({"weight": Array(np.zeros(PAYLOAD // 4, np.float32))})

    def tell(server_round: int, arrays: ArrayRecord) -> None:
        """Write a line into the file that the configuration names, at the end of each round."""
        if server_round and (times := context.run_config.get("times")):
            with Path(str(times)).open("a") as file:
                file.write(f"{server_round}\n")

    strategy(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes).start(
        grid, initial, num_rounds=rounds, train_config=ConfigRecord(), evaluate_fn=tell
    )
