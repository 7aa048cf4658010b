"""`fedpress bench` engine, codec, reuse, memory, scale, hub: what this build costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpress.simulations.cli import common


def engine(
    messages: Annotated[int, typer.Option(help="Messages in each repetition (2000).", **common.COUNT)] = 2000,
    workers: Annotated[int, typer.Option(help="Worker processes (2).", **common.COUNT)] = 2,
    repetitions: Annotated[int, typer.Option(help="Repetitions; the median counts (5).", **common.COUNT)] = 5,
    flower: Annotated[
        bool, typer.Option("--flower", help="Also measure Flower's own engine, on Ray; needs fedpress[cluster].")
    ] = False,
    json_file: common.JsonOption = None,
) -> None:
    """Measure what the engine costs beside the clients' work.

    Prints the time from the start to the first replies of the workers, and how many
    trivial messages a second go to clients and back.

    \b
    Examples:
      fedpress bench engine --workers 4
      fedpress bench engine --flower --messages 1000 --repetitions 3
    """
    with common.clear_errors("cluster" if flower else "simulation", json_file):
        from fedpress.simulations.benchmarks import engine as benchmark

        found = {"inline": benchmark.run(messages, workers, repetitions)}
        if flower:
            found["flower"] = benchmark.run(messages, workers, repetitions, flower=True)
        rows = [
            (name, str(figures.workers), f"{figures.start_seconds:.2f} s", f"{figures.messages_per_second:,.0f}")
            for name, figures in found.items()
        ]
        common.show_rows(("engine", "workers", "start", "messages a second"), rows)
        common.write_json(json_file, {name: figures._asdict() for name, figures in found.items()})


def codec(
    size: Annotated[
        int | None, typer.Option(help="Entries of the vector (1000000, or all that DATA has).", **common.COUNT)
    ] = None,
    density: Annotated[
        float, typer.Option(metavar="P", show_default=False, help="Part of the entries that is sent (0.01).")
    ] = 0.01,
    data: Annotated[
        str, typer.Option(metavar="DATA", show_default=False, help="What the vector is like (clustered).")
    ] = "clustered",
    number_format: Annotated[
        str, typer.Option("--values", metavar="FORMAT", show_default=False, help="Number format (step).")
    ] = "step",
    payloads: Annotated[int, typer.Option(help="Different payloads to decode and add (8).", **common.COUNT)] = 8,
    nncodec_python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python of an environment with nncodec, to measure that too."),
    ] = None,
    openfl_python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python of an environment with OpenFL, to measure its STC too."),
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Measure time and bytes of the codec on one vector.

    Compares the client's whole step (residual, exact top-k, payload, residual: what
    recipes.default does) with a
    copy of the vector, with the naive form of the same step and with Flower's dense
    serialization, all in one run; and the positions with their entropy.

    \b
    DATA is one of
      clustered            like an update: large entries cluster by layer
      uniform              independent normal values
      equal, zeros, one-value, few-values, subnormal
                           nasty: ties, 99.9 % zero, 99.9 % one value
      FILE.npy             a float32 vector, such as an update of your own
      SCENARIO             the update of its first client in the first round, trained here
    \b
    Example:
      fedpress bench codec --size 10000000 --density 0.01
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.benchmarks import codec as benchmark

        figures = benchmark.run(
            size, density, data, number_format, payloads, nncodec_python=nncodec_python, openfl_python=openfl_python
        )
        common.show_facts(benchmark.facts(figures))
        common.write_json(json_file, figures._asdict())


def reuse(
    run: Annotated[Path, typer.Argument(metavar="RUN", **common.DOCUMENTED)],
    json_file: common.JsonOption = None,
) -> None:
    """Measure what positions would cost, coded against earlier supports.

    RUN is the folder of a run that kept its payloads (fedpress simulate digits
    --keep-payloads). Their positions are written again against the client's own last
    accepted support (own), against all places that the round before touched (union),
    and against the places where its sum is largest (top). A reference is used where
    it is shorter. The row correlated is about the positions that a selection with
    10 % of its entries from outside the own last support would send. The JSON has
    every payload.

    \b
    Example:
      fedpress bench reuse runs/digits-20261123-101500
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.benchmarks import reuse as benchmark

        coded = benchmark.run(run)
        made = benchmark.summaries(coded)
        common.show_rows(benchmark.COLUMNS, benchmark.rows(made))
        common.write_json(
            json_file,
            {
                "references": [{**one._asdict(), "gain": one.gain} for one in made],
                "payloads": [one._asdict() for one in coded],
            },
        )


def memory(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    rounds: Annotated[int, typer.Option(help="Rounds to run (1000).", **common.COUNT)] = 1000,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the memory over the rounds as SVG to FILE.")
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Measure whether a long run's memory grows.

    SCENARIO is as for `fedpress simulate`; it runs without students, with checkpoints,
    in a folder that is removed at the end. After each round the resident memory of the
    server's process and of each worker is read, and after a fifth of the rounds a line
    is fitted to each third of the rest; the median slope counts. Linux only.

    \b
    Examples:
      fedpress bench memory --plot memory.svg
      fedpress bench memory digits --rounds 200 --set downlink=null
    """
    with common.clear_errors("simulation", json_file, plot):
        from rich.console import Console

        from fedpress.simulations.benchmarks import memory as benchmark
        from fedpress.simulations.cli import progress
        from fedpress.simulations.scenario import scenario as scenarios

        chosen = scenarios.load(scenario, ["students.tiers=[]", f"rounds={rounds}", *(overrides or ())])
        with progress.Display(Console(), chosen.rounds) as display:
            found = benchmark.run(chosen, display)
        typer.echo()
        common.show_rows(benchmark.COLUMNS, benchmark.rows(found))
        if plot is not None:
            plot.write_text(benchmark.plot(found), encoding="utf-8")
            typer.echo(f"plot: {plot}")
        common.write_json(json_file, benchmark.as_json(chosen, found))


def scale(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    clients: Annotated[
        str, typer.Option(metavar="NUMBERS", show_default=False, help="How many, such as 100,1000. Default: 20,200.")
    ] = "20,200",
    rounds: Annotated[int, typer.Option(help="Rounds of each run, at least 3 (10).", **common.COUNT)] = 10,
    json_file: common.JsonOption = None,
) -> None:
    """Measure what the number of clients costs.

    Runs SCENARIO (as for `fedpress simulate`) once for each number of clients, each
    time in new processes and a folder that is removed. The work of a round is the
    same: as many clients of it, equal parts of the data, one local step on one example,
    no students. Prints the time to start and that of a round, each with its processor
    time (of server and workers), the largest memory of the server's process and of a
    worker, the file that a client keeps, and the server's checkpoint. Linux only.

    \b
    Example:
      fedpress bench scale fashion-mnist-100 --clients 100,1000,10000 \\
          --set sampling.per_round=100 --set 'task={name: fashion-mnist, model: mlp}'
    """
    with common.clear_errors("simulation", json_file):
        numbers = _parse_clients(clients)
        from fedpress.simulations.benchmarks import scale as benchmark
        from fedpress.simulations.scenario import scenario as scenarios

        size = [f"rounds={rounds}", f"clients={min(numbers)}", *benchmark.SAME_WORK]
        chosen = scenarios.load(scenario, [*size, *(overrides or ())])
        found = benchmark.run(chosen, numbers, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_figures(benchmark, found, json_file)


def hub(
    downloads: Annotated[int, typer.Option(help="Downloads at once (200).", **common.COUNT)] = 200,
    size: Annotated[int, typer.Option(help="Bytes of the file (4000000).", **common.COUNT)] = 4_000_000,
    json_file: common.JsonOption = None,
) -> None:
    """Measure the model hub under load.

    Starts `fedpress hub` on this machine with TLS and a token, and downloads one file 10
    and then so many times at once, each over a connection of its own, every byte
    checked. Prints errors, the rate against reading the file from the disk, and the
    hub's peak memory, which hardly grows with the downloads. The clients take their
    share of the processor: the rate is that of both.

    \b
    Example:
      fedpress bench hub --downloads 400 --size 1000000
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.benchmarks import hub as benchmark

        figures = benchmark.run(downloads, size, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_rows(benchmark.COLUMNS, benchmark.rows(figures))
        typer.echo()
        common.show_facts(benchmark.facts(figures))
        common.write_json(json_file, benchmark.as_json(figures))
        if any(load.errors for load in figures.loads):
            common.leave("error: downloads failed", 1)


def _parse_clients(text: str) -> list[int]:
    """Read "100,1000"."""
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        common.leave(f"error: --clients {text}: expected numbers from 1 on, such as 100,1000", 2)
    return numbers
