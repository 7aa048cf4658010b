"""`fedpress bench` wire and warm: Flower's own processes, started and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedpress.simulations.cli import common

if TYPE_CHECKING:
    from fedpress.simulations.scenario.scenario import Scenario


Nodes = Annotated[int, typer.Option(help="SuperNodes, all in each round (2).", **common.COUNT)]
IdleSeconds = Annotated[
    float, typer.Option(metavar="SECONDS", show_default=False, help="How long to watch waiting nodes (15).")
]


def wire(
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
        from fedpress.simulations.benchmarks import wire as benchmark

        figures = benchmark.run(chosen, idle, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_figures(benchmark, figures, json_file)


def warm(
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
        from fedpress.simulations.benchmarks import warm as benchmark

        figures = benchmark.run(chosen, idle, lambda line: typer.echo(f"{line} ...", err=True))
        common.show_figures(benchmark, figures, json_file)


def _deployed(scenario: str, overrides: list[str] | None, nodes: int, rounds: int) -> Scenario:
    """Return a scenario for so many nodes of Flower's own processes, all in each round."""
    if rounds < 2:
        common.leave(f"error: --rounds {rounds}: expected at least 2, since the first is left out", 2)
    from fedpress.simulations.scenario import scenario as scenarios

    size = [f"clients={nodes}", f"sampling.per_round={nodes}", f"rounds={rounds}", "students.tiers=[]"]
    return scenarios.load(scenario, [*size, *(overrides or ())])
