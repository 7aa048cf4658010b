"""`fedpress bench engine`, `codec`, `reuse`, `memory`, `scale`, `size` and `hub`: costs in time, bytes and memory."""

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
        bool, typer.Option("--flower", help="Also measure Flower's own engine, on Ray; needs the extra cluster.")
    ] = False,
    json_file: common.JsonOption = None,
) -> None:
    """Measure the engine's overhead: start-up and messages.

    Prints the time from the start to the workers' first replies, and the number of
    trivial messages a second that make the round trip to a client.

    \b
    Examples:
      fedpress bench engine --workers 4
      fedpress bench engine --flower --messages 1000 --repetitions 3
    """
    with common.clear_errors("cluster" if flower else "simulation", json_file):
        from fedpress.simulations.benchmarks import engine as benchmark

        by_engine = {"inline": benchmark.run(messages, workers, repetitions)}
        if flower:
            by_engine["flower"] = benchmark.run(messages, workers, repetitions, flower=True)
        rows = [
            (name, str(figures.workers), f"{figures.start_seconds:.2f} s", f"{figures.messages_per_second:,.0f}")
            for name, figures in by_engine.items()
        ]
        common.show_rows(("engine", "workers", "start", "messages a second"), rows)
        common.write_json(json_file, {name: figures._asdict() for name, figures in by_engine.items()})


def codec(
    size: Annotated[
        int | None, typer.Option(help="Entries of the vector (1000000, or all that DATA has).", **common.COUNT)
    ] = None,
    density: Annotated[
        float, typer.Option(metavar="P", show_default=False, help="Fraction of the entries that is sent (0.01).")
    ] = 0.01,
    data: Annotated[
        str, typer.Option(metavar="DATA", show_default=False, help="Kind of vector, see above (clustered).")
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

    Compares the client's whole step (add the residual, exact top-k, encode, keep the
    new residual: recipes.default) with a copy of the vector, with a naive version of
    the same step and with Flower's dense serialization, all in one run; and the size
    of the positions with their entropy.

    \b
    DATA is one of
      clustered            like an update: large entries cluster by layer
      uniform              independent normal values
      equal, zeros, one-value, few-values, subnormal
                           hard cases: ties, 99.9 % zeros, 99.9 % one value
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
    """Measure positions coded against earlier positions.

    RUN is the folder of a run that kept its payloads (fedpress simulate digits
    --keep-payloads). Their positions are encoded again relative to the client's own
    last accepted positions (own), to all positions of the previous round (union), and
    to those where the sum of that round is largest (top). A reference counts only where
    it makes the payload shorter. The row "correlated" estimates a selection that takes
    90 % of its entries from the client's last positions. --json has every payload.

    \b
    Example:
      fedpress bench reuse runs/digits-20261123-101500
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.benchmarks import reuse as benchmark

        coded = benchmark.run(run)
        summaries = benchmark.summaries(coded)
        common.show_rows(benchmark.COLUMNS, benchmark.rows(summaries))
        common.write_json(
            json_file,
            {
                "references": [{**summary._asdict(), "gain": summary.gain} for summary in summaries],
                "payloads": [payload._asdict() for payload in coded],
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
    in a temporary folder. The resident memory of the server's process and of each worker
    is read after every round. The first fifth of the rounds is a warm-up; a line is
    fitted to each third of the rest, and the median slope is reported. Linux only.

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
            processes = benchmark.run(chosen, display)
        typer.echo()
        common.show_rows(benchmark.COLUMNS, benchmark.rows(processes))
        if plot is not None:
            plot.write_text(benchmark.plot(processes), encoding="utf-8")
            typer.echo(f"plot: {plot}")
        common.write_json(json_file, benchmark.as_json(chosen, processes))


def scale(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    clients: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS", show_default=False, help="Numbers of clients, such as 100,1000. Default: 20,200."
        ),
    ] = "20,200",
    rounds: Annotated[int, typer.Option(help="Rounds of each run, at least 3 (10).", **common.COUNT)] = 10,
    json_file: common.JsonOption = None,
) -> None:
    """Measure how time and memory grow with the clients.

    Runs SCENARIO (as for `fedpress simulate`) once for each number of clients, each
    time in new processes and a temporary folder. The work of a round is always the
    same: the same number of clients a round, equal parts of the data, one local step on
    one example, no students. Prints start-up time and time of a round, each with its
    processor time (server and workers), peak memory of the server's process and of a
    worker, and the sizes of a client's state file and of the checkpoint. Linux only.

    \b
    Example:
      fedpress bench scale fashion-mnist-100 --clients 100,1000,10000 \\
          --set sampling.clients_per_round=100 --set 'task={name: fashion-mnist, model: mlp}'
    """
    with common.clear_errors("simulation", json_file):
        numbers = _parse_clients(clients)
        from fedpress.simulations.benchmarks import scale as benchmark
        from fedpress.simulations.scenario import scenario as scenarios

        size = [f"rounds={rounds}", f"clients={min(numbers)}", *benchmark.SAME_WORK]
        chosen = scenarios.load(scenario, [*size, *(overrides or ())])
        runs = benchmark.run(chosen, numbers, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_figures(benchmark, runs, json_file)


def size(
    parameters: Annotated[
        str,
        typer.Option(metavar="NUMBERS", show_default=False, help="Sizes of models, such as 1e6,1e8. Default: 1e6,1e7."),
    ] = "1e6,1e7",
    stages: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Stages to measure, parted by semicolons; all by default.")
    ] = None,
    json_file: common.JsonOption = None,
) -> None:
    """Measure what a large model costs at each stage of a round.

    Each stage runs in a process of its own, with models of random weights: the server at
    rest and in a round, a snapshot made and received, a checkpoint and a client's state
    written and read, a round written to the journal, an update encoded, and a client's
    whole round around its training.
    Prints memory in multiples of the float32 model, processor time in multiples of one
    copy of its vector, and bytes. Needs up to ten times the model in memory. Linux only.

    \b
    Example:
      fedpress bench size --parameters 1e6,1e7,1e8,3.5e8
    """
    with common.clear_errors("simulation", json_file):
        numbers = _parse_sizes(parameters)
        from fedpress.simulations.benchmarks import size as benchmark

        chosen = [name.strip() for name in stages.split(";")] if stages else list(benchmark.STAGES)
        if unknown := [name for name in chosen if name not in benchmark.STAGES]:
            common.leave(
                f"error: --stages: no stage is named {unknown[0]!r}; there are {'; '.join(benchmark.STAGES)}", 2
            )
        figures = benchmark.run(numbers, chosen, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_figures(benchmark, figures, json_file)


def hub(
    downloads: Annotated[int, typer.Option(help="Concurrent downloads (200).", **common.COUNT)] = 200,
    size: Annotated[int, typer.Option(help="Bytes of the file (4000000).", **common.COUNT)] = 4_000_000,
    json_file: common.JsonOption = None,
) -> None:
    """Measure the model hub under load.

    Starts `fedpress hub` on this machine with TLS and a token, and downloads one file
    with 10 and then with --downloads concurrent clients, each over its own connection,
    every byte checked. Prints errors, the rate compared with reading the file from disk,
    and the hub's peak memory. The clients run on the same processor as the hub, so the
    rate is a lower bound.

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


def _parse_sizes(text: str) -> list[int]:
    """Return the numbers of parameters in a list such as "1e6,3.5e8"."""
    try:
        numbers = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        numbers = [0]
    if min(numbers) < 1000 or max(numbers) > 2**32 - 1:
        common.leave(f"error: --parameters {text}: expected numbers from 1e3 to 4e9, such as 1e6,1e8", 2)
    return numbers


def _parse_clients(text: str) -> list[int]:
    """Return the numbers of a list such as "100,1000"."""
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        common.leave(f"error: --clients {text}: expected numbers from 1 on, such as 100,1000", 2)
    return numbers
