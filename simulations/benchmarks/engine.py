"""`fedpress bench engine`: what an engine costs beside the clients' own work."""

from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpress.simulations.engines.inline import InlineGrid

if TYPE_CHECKING:
    from fedpress.simulations.engines.flower import FlowerGrid

CLIENTS = 100

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """The least that a client can do: answer with one number."""
    return Message(RecordDict({"metrics": MetricRecord({"client": context.node_id})}), reply_to=message)


class EngineFigures(NamedTuple):
    """What an engine costs.

    Attributes:
        workers: number of processes.
        start_seconds: from the call to the first replies, four for each worker.
        messages_per_second: trivial messages, there and back, median over the repetitions.
    """

    workers: int
    start_seconds: float
    messages_per_second: float


def run(messages: int = 2000, workers: int = 2, repetitions: int = 5, *, flower: bool = False) -> EngineFigures:
    """Measure the start and the rate of trivial messages, on the inline engine or on Flower's."""
    began = perf_counter()
    with _grid(workers, flower) as grid:
        grid.send_and_receive(_messages(4 * workers))
        start = perf_counter() - began
        rates = []
        for _ in range(repetitions):
            began = perf_counter()
            replies = grid.send_and_receive(_messages(messages))
            rates.append(len(replies) / (perf_counter() - began))
    return EngineFigures(workers, start, sorted(rates)[len(rates) // 2])


def _grid(workers: int, flower: bool) -> "InlineGrid | FlowerGrid":
    app = "fedpress.simulations.benchmarks.engine:app"
    if not flower:
        return InlineGrid(app, clients=CLIENTS, workers=workers)
    from fedpress.simulations.engines import flower as flower_engine  # needs Ray

    return flower_engine.FlowerGrid(app, clients=CLIENTS, workers=workers)


def _messages(count: int) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    return [Message(content, dst_node_id=1 + i % CLIENTS, message_type="query.echo") for i in range(count)]
