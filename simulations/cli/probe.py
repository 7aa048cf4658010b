"""`fedpress probe`: measurement of this device, and its tier."""

from __future__ import annotations

from typing import Annotated

import typer

from fedpress.simulations.cli import common


def probe(
    scenario: Annotated[str | None, typer.Argument(**common.DOCUMENTED)] = None,
    overrides: common.SetOption = None,
    latency: Annotated[
        float | None, typer.Option(metavar="MS", help="Most milliseconds that one inference may take here.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Most memory that a model may take here. Default: free memory.")
    ] = None,
    download: Annotated[int | None, typer.Option(metavar="BYTES", help="Largest bundle to download.")] = None,
    threads: Annotated[int, typer.Option(help="Threads to measure on (1).", **common.COUNT)] = 1,
    json_file: common.JsonOption = None,
) -> None:
    """Measure this device in a few seconds, and name its tier.

    Times reference models, a matrix product and a convolution, and fits a formula that
    predicts the latency of other models on this device.

    With SCENARIO, the task's model and the students of the scenario's tiers are timed,
    too: the device belongs to the largest tier that fits the limits. The file that
    --json writes tells a node its tier (`probe` in the settings of `fedpress client`),
    and is the `device` of a tier with a budget of latency_ms in a scenario.

    \b
    Examples:
      fedpress probe
      fedpress probe fashion-mnist-100 --latency 0.2 --json phone.json
    """
    with common.clear_errors("simulation", json_file):
        from fedpress.simulations.runs import probe_tiers
        from fedpress.simulations.scenario import scenario as scenarios

        chosen = scenarios.load(scenario, overrides or ()) if scenario else None
        device, tiers = probe_tiers.run(chosen, probe_tiers.Limits(latency, memory, download), threads)
        common.show_facts(probe_tiers.facts(device))
        typer.echo()
        common.show_rows(probe_tiers.MODEL_COLUMNS, probe_tiers.model_rows(device))
        if tiers:
            typer.echo()
            common.show_rows(probe_tiers.TIER_COLUMNS, probe_tiers.tier_rows(tiers))
        common.write_json(json_file, device.to_json())
        if chosen and not device.tier:
            raise probe_tiers.nothing_fits(tiers)
        if device.tier:
            typer.echo(f"\ntier: {device.tier}")
