"""The commands of `fedpress bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpress.simulations.cli import common, suites

if TYPE_CHECKING:
    from fedpress.simulations.scenario.scenario import Scenario

bench = typer.Typer(no_args_is_help=True, help="Measure this build on this machine.", **common.PLAIN)


@bench.command("engine")
def bench_engine(
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
        from fedpress.simulations.benchmarks import engine

        found = {"inline": engine.run(messages, workers, repetitions)}
        if flower:
            found["flower"] = engine.run(messages, workers, repetitions, flower=True)
        rows = [
            (name, str(figures.workers), f"{figures.start_seconds:.2f} s", f"{figures.messages_per_second:,.0f}")
            for name, figures in found.items()
        ]
        common.show_rows(("engine", "workers", "start", "messages a second"), rows)
        common.write_json(json_file, {name: figures._asdict() for name, figures in found.items()})


@bench.command("codec")
def bench_codec(
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
    recipes.fedpress does) with a
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
        from fedpress.simulations.benchmarks import codec

        figures = codec.run(
            size, density, data, number_format, payloads, nncodec_python=nncodec_python, openfl_python=openfl_python
        )
        common.show_facts(codec.facts(figures))
        common.write_json(json_file, figures._asdict())


@bench.command("reuse")
def bench_reuse(
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
        from fedpress.simulations.benchmarks import reuse

        coded = reuse.run(run)
        made = reuse.summaries(coded)
        common.show_rows(reuse.COLUMNS, reuse.rows(made))
        common.write_json(
            json_file,
            {
                "references": [{**one._asdict(), "gain": one.gain} for one in made],
                "payloads": [one._asdict() for one in coded],
            },
        )


FEDAVG = (
    "encoder={kind: dense, values: float32, feedback: none}",
    "server={optimizer: sgd, learning_rate: 1.0}",
    "downlink=null",
)
"""What makes a scenario dense FedAvg."""


@bench.command("paired")
def bench_paired(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Change one key of the baseline; may be given again."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", show_default=False, help="Such as 1-10 or 3,5,8. Default: 1-10.")
    ] = "1-10",
    json_file: common.JsonOption = None,
) -> None:
    """Compare a scenario with dense FedAvg, seed by seed.

    SCENARIO is as for `fedpress simulate`. Both runs of a pair share data, clients,
    initial weights and sampling; the baseline sends and gets whole float32 models, and
    its server takes the mean (optimizer sgd, rate 1) unless --baseline says otherwise.
    Prints the difference in accuracy with its 95 % interval, and the bytes saved.

    \b
    Examples:
      fedpress bench paired
      fedpress bench paired digits --set density=0.005 --seeds 1-3
      fedpress bench paired fashion-mnist-100 --baseline server.learning_rate=1.5
    """
    with common.clear_errors("simulation", json_file):
        chosen = _parse_seeds(seeds)
        from fedpress.simulations.benchmarks import paired
        from fedpress.simulations.scenario import scenario as scenarios

        ours = scenarios.load(scenario, overrides or ())
        theirs = scenarios.load(scenario, [*(overrides or ()), *FEDAVG, *(baseline or ())])
        typer.echo(f"{'seed':>6}  {'scenario':>8}  {'baseline':>8}  {'difference':>10}")

        def show(pair: paired.Pair) -> None:
            typer.echo(
                f"{pair.seed:>6}  {pair.accuracy:>8.2%}  {pair.baseline_accuracy:>8.2%}"
                f"  {100 * pair.difference:>+10.2f}"
            )

        found = paired.run(ours, theirs, chosen, show)
        certain = math.isfinite(found.half_width)
        interval = f" +- {100 * found.half_width:.2f} (95 % interval)" if certain else " (one seed: no interval)"
        facts = [
            ("accuracy against the baseline", f"{100 * found.difference:+.2f} points{interval}"),
            ("bytes up", f"{found.up_ratio:,.1f}x less"),
            ("bytes up and down", f"{found.both_ratio:,.1f}x less"),
        ]
        typer.echo()
        common.show_facts(facts)
        common.write_json(
            json_file,
            {
                "scenario": ours.model_dump(mode="json"),
                "baseline": theirs.model_dump(mode="json"),
                "pairs": [{**pair._asdict(), "difference": pair.difference} for pair in found.pairs],
                "difference": found.difference,
                "half_width": found.half_width if certain else None,
                "up_ratio": found.up_ratio,
                "both_ratio": found.both_ratio,
            },
        )


@bench.command("tiers")
def bench_tiers(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Only this row of the table; may be given again.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", show_default=False, help="Such as 1-3 or 3,5,8. Default: 1.")
    ] = "1",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the runs are kept; those that are there are not run again.")
    ] = Path("runs/tiers"),
    json_file: common.JsonOption = None,
) -> None:
    """Compare tiers that train and teach each other with other ways.

    SCENARIO is as for `fedpress simulate`, with tiers that train. The rows: taught
    (that scenario), apart (each model by itself), slices (HeteroFL), smallest (the
    smallest model for all), students (made at the end from a global model that all
    clients train); and controls: proxy, tuned, late. One row takes as long as a run;
    an interrupted command goes on where it was.

    \b
    Example:
      fedpress bench tiers digits --set 'teaching={every: 5}' --set \\
          'students.tiers=[{name: phone, parameters: 0.1, trains: true}]'
    """
    with common.clear_errors("simulation", json_file):
        numbers = _parse_seeds(seeds)
        from fedpress.simulations.benchmarks import tiers
        from fedpress.simulations.scenario import scenario as scenarios

        base = scenarios.load(scenario, overrides or ())
        names = only or [*tiers.ROWS, *tiers.CONTROLS]
        rows = []
        for seed in numbers:
            for row in tiers.run(base, names, seed, out / f"seed-{seed}"):
                rows.append(row)
                found = ", ".join(f"{tier or 'global'} {value:.2%}" for tier, value in row.accuracy.items())
                typer.echo(f"seed {seed}, {row.name}: {found}")
        typer.echo()
        common.show_rows(*tiers.table(rows))
        gaps = tiers.closed(rows)
        facts = [
            (f"gap of {tier}", f"{100 * gap:.2f} points, {100 * gain:+.2f} of them by teaching")
            for tier, (gap, gain) in gaps.items()
        ]
        if facts:
            typer.echo()
            common.show_facts(facts)
        common.write_json(
            json_file,
            {"scenario": base.model_dump(mode="json"), "rows": [row._asdict() for row in rows], "closed": gaps},
        )


bench.command("communication")(suites.communication)


Nodes = Annotated[int, typer.Option(help="SuperNodes, all in each round (2).", **common.COUNT)]
IdleSeconds = Annotated[
    float, typer.Option(metavar="SECONDS", show_default=False, help="How long to watch waiting nodes (15).")
]


def _deployed(scenario: str, overrides: list[str] | None, nodes: int, rounds: int) -> Scenario:
    """Return a scenario for so many nodes of Flower's own processes, all in each round."""
    if rounds < 2:
        common.leave(f"error: --rounds {rounds}: expected at least 2, since the first is left out", 2)
    from fedpress.simulations.scenario import scenario as scenarios

    size = [f"clients={nodes}", f"sampling.clients_per_round={nodes}", f"rounds={rounds}", "students.tiers=[]"]
    return scenarios.load(scenario, [*size, *(overrides or ())])


def _show(bench: Any, figures: Any, json_file: Path | None) -> None:
    """Print the table and the lines of a bench with `COLUMNS`, `rows`, `facts` and `as_json`."""
    common.show_rows(bench.COLUMNS, bench.rows(figures))
    typer.echo()
    common.show_facts(bench.facts(figures))
    common.write_json(json_file, bench.as_json(figures))


@bench.command("wire")
def bench_wire(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    nodes: Nodes = 2,
    rounds: Annotated[int, typer.Option(help="Rounds of each run, at least 2 (6).", **common.COUNT)] = 6,
    idle: IdleSeconds = 15.0,
    json_file: common.JsonOption = None,
) -> None:
    """Measure the bytes on the wire of Flower's own processes.

    Starts a SuperLink and SuperNodes on this machine, on free ports and with a Flower
    home of their own, and stops them at the end. Runs fedpress on SCENARIO
    (as for `fedpress simulate`, without students) and then plain FedAvg with 1 kB each
    way. Prints what goes up and down for each client and round: the payload, the
    requests beside it, polls while a node waits for work, and what TLS adds to all of
    these. Bytes are those of the TCP streams, with HTTP's headers, without those of TCP
    and IP.

    \b
    Example:
      fedpress bench wire --nodes 3 --rounds 10
    """
    with common.clear_errors("simulation", json_file):
        chosen = _deployed(scenario, overrides, nodes, rounds)
        from fedpress.simulations.benchmarks import wire

        figures = wire.run(chosen, idle, lambda line: typer.echo(f"{line} ...", err=True))
        _show(wire, figures, json_file)


@bench.command("warm")
def bench_warm(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    nodes: Nodes = 2,
    rounds: Annotated[int, typer.Option(help="Rounds of each run, at least 2 (8).", **common.COUNT)] = 8,
    idle: IdleSeconds = 15.0,
    json_file: common.JsonOption = None,
) -> None:
    """Measure what a warm trainer saves a node.

    Starts a SuperLink and SuperNodes on this machine, insecure, on free ports and with
    a Flower home of their own, and stops them at the end; once as Flower starts them,
    once each with a warm trainer. Runs plain FedAvg with 1 kB each way, the same with
    fedpress, and SCENARIO (as for `fedpress simulate`, without students). Prints the
    time of a round and a node's processor time for it. Linux only.

    \b
    Example:
      fedpress bench warm --nodes 2 --rounds 10
    """
    with common.clear_errors("simulation", json_file):
        chosen = _deployed(scenario, overrides, nodes, rounds)
        from fedpress.simulations.benchmarks import warm

        figures = warm.run(chosen, idle, lambda line: typer.echo(f"{line} ...", err=True))
        _show(warm, figures, json_file)


@bench.command("memory")
def bench_memory(
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

        from fedpress.simulations.benchmarks import memory
        from fedpress.simulations.cli import progress
        from fedpress.simulations.scenario import scenario as scenarios

        chosen = scenarios.load(scenario, ["students.tiers=[]", f"rounds={rounds}", *(overrides or ())])
        with progress.Display(Console(), chosen.rounds) as display:
            found = memory.run(chosen, display)
        typer.echo()
        common.show_rows(memory.COLUMNS, memory.rows(found))
        if plot is not None:
            plot.write_text(memory.plot(found), encoding="utf-8")
            typer.echo(f"plot: {plot}")
        common.write_json(json_file, memory.as_json(chosen, found))


@bench.command("scale")
def bench_scale(
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
          --set sampling.clients_per_round=100 --set 'task={name: fashion-mnist, model: mlp}'
    """
    with common.clear_errors("simulation", json_file):
        numbers = _parse_clients(clients)
        from fedpress.simulations.benchmarks import scale
        from fedpress.simulations.scenario import scenario as scenarios

        size = [f"rounds={rounds}", f"clients={min(numbers)}", *scale.SAME_WORK]
        chosen = scenarios.load(scenario, [*size, *(overrides or ())])
        found = scale.run(chosen, numbers, lambda line: typer.echo(f"{line} ...", err=True))
        _show(scale, found, json_file)


@bench.command("hub")
def bench_hub(
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
        from fedpress.simulations.benchmarks import hub

        figures = hub.run(downloads, size, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_rows(hub.COLUMNS, hub.rows(figures))
        typer.echo()
        common.show_facts(hub.facts(figures))
        common.write_json(json_file, hub.as_json(figures))
        if any(load.errors for load in figures.loads):
            common.leave("error: downloads failed", 1)


def _parse_seeds(text: str) -> list[int]:
    """Read the seeds that an option gives; "1-10" or "3,5,8"."""
    from fedpress.simulations.suites import suite

    try:
        return suite.parse_seeds(text)
    except ValueError as error:
        common.leave(f"error: --seeds: {error}", 2)


def _parse_clients(text: str) -> list[int]:
    """Read "100,1000"."""
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        common.leave(f"error: --clients {text}: expected numbers from 1 on, such as 100,1000", 2)
    return numbers
