"""`fedpress bench wire` and `warm`: measurements of Flower's own processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedpress.simulations.cli import common

if TYPE_CHECKING:
    from fedpress.simulations.scenario.scenario import Scenario


Nodes = Annotated[int, typer.Option(help="SuperNodes, all of them in every round (2).", **common.COUNT)]
IdleSeconds = Annotated[
    float, typer.Option(metavar="SECONDS", show_default=False, help="How long idle nodes are measured (15).")
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
    home of their own, and stops them at the end. Runs fedpress on SCENARIO (as for
    `fedpress simulate`, without students), then plain FedAvg with a model of 1 kB.
    Prints the bytes up and down for each client and round: payload, requests besides
    it, polls while a node waits for work, and the overhead of TLS. Counted are the TCP
    streams, with HTTP headers, without those of TCP and IP.

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
    """Measure the time that a warm trainer saves a node.

    Starts a SuperLink and SuperNodes on this machine, without TLS, on free ports and
    with a Flower home of their own, and stops them at the end: once as Flower starts
    them, once with a warm trainer each (`warm: true` of `fedpress client`). Runs plain
    FedAvg with a model of 1 kB, the same with fedpress, and SCENARIO (as for `fedpress
    simulate`, without students). Prints the time of a round and a node's processor
    time for it. Linux only.

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
    """Return the scenario with `nodes` clients, all of them in every round, and without students."""
    if rounds < 2:
        common.leave(f"error: --rounds {rounds}: expected at least 2, since the first is left out", 2)
    from fedpress.simulations.scenario import scenario as scenarios

    size = [f"clients={nodes}", f"sampling.clients_per_round={nodes}", f"rounds={rounds}", "students.tiers=[]"]
    return scenarios.load(scenario, [*size, *(overrides or ())])
