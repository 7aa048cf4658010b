"""`fedpress bench engine`: overhead of an engine beside the clients' own work."""

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
    """Reply with one number.

    Args:
        message: The query.
        context: The node, whose id is the reply.
    """
    return Message(RecordDict({"metrics": MetricRecord({"client": context.node_id})}), reply_to=message)


class EngineFigures(NamedTuple):
    """Overhead of an engine.

    Attributes:
        workers: Number of processes.
        start_seconds: Time from the call to the first replies, four for each worker.
        messages_per_second: Round trips of trivial messages, median over the repetitions.
    """

    workers: int
    start_seconds: float
    messages_per_second: float


def run(messages: int = 2000, workers: int = 2, repetitions: int = 5, *, flower: bool = False) -> EngineFigures:
    """Measure the start of an engine, and its rate of trivial messages.

    Args:
        messages: Messages of each repetition.
        workers: Number of processes.
        repetitions: Number of timings; the median is reported.
        flower: Whether to use Flower's engine, on Ray, in place of the inline engine.
    """
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
