"""`fedpress probe`: this device measured."""

from __future__ import annotations

from typing import Annotated

import typer

from fedpress.simulations.cli import common


def probe(
    scenario: Annotated[str | None, typer.Argument(**common.DOCUMENTED)] = None,
    overrides: common.SetOption = None,
    latency: Annotated[
        float | None, typer.Option(metavar="MS", help="An answer may take this many milliseconds here.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Memory that a model may take here; default: what is free.")
    ] = None,
    download: Annotated[int | None, typer.Option(metavar="BYTES", help="The largest download that is welcome.")] = None,
    threads: Annotated[int, typer.Option(help="Threads to measure on (1).", **common.COUNT)] = 1,
    json_file: common.JsonOption = None,
) -> None:
    """Measure this device in a few seconds, and name its tier.

    Times reference models, a matrix product and a convolution, and fits a formula by
    which a server can tell how long a model takes here that was never seen here.

    With SCENARIO, its task's model is timed too, and so are the students of its tiers:
    this device is of the largest tier that fits. The file that --json writes says so
    to a node (node configuration: probe="FILE"), and to a scenario as the `device`
    of a tier with a budget of latency_ms.

    \b
    Examples:
      fedpress probe
      fedpress probe fashion-mnist-100 --latency 0.2 --json phone.json
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.runs import probe_tiers
        from fedpress.simulations.scenario import scenario as scenarios

        chosen = scenarios.load(scenario, overrides or ()) if scenario else None
        found, tiers = probe_tiers.run(chosen, probe_tiers.Limits(latency, memory, download), threads)
        common.show_facts(probe_tiers.facts(found))
        typer.echo()
        common.show_rows(probe_tiers.MODEL_COLUMNS, probe_tiers.model_rows(found))
        if tiers:
            typer.echo()
            common.show_rows(probe_tiers.TIER_COLUMNS, probe_tiers.tier_rows(tiers))
        common.write_json(json_file, found.to_json())
        if chosen and not found.tier:
            raise probe_tiers.nothing_fits(tiers)
        if found.tier:
            typer.echo(f"\ntier: {found.tier}")
