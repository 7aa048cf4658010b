"""`fedpress bench paired` and `tiers`: comparisons of a scenario with variants of it, seed by seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fedpress.simulations.cli import common

FEDAVG = (
    "encoder={kind: dense, values: float32, feedback: none}",
    "server={optimizer: sgd, learning_rate: 1.0}",
    "downlink=null",
)
"""Overrides that turn a scenario into dense FedAvg."""


def paired(
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
    initial weights and sampling. The baseline exchanges whole float32 models, and its
    server applies their mean (server.optimizer sgd, learning rate 1) unless --baseline
    changes that. Prints the difference in accuracy with its 95 % confidence interval,
    and the bytes saved.

    \b
    Examples:
      fedpress bench paired
      fedpress bench paired digits --set density=0.005 --seeds 1-3
      fedpress bench paired fashion-mnist-100 --baseline server.learning_rate=1.5
    """
    with common.clear_errors("simulation", json_file):
        chosen = common.parse_seeds(seeds)
        from fedpress.simulations.benchmarks import paired as benchmark
        from fedpress.simulations.scenario import scenario as scenarios

        ours = scenarios.load(scenario, overrides or ())
        theirs = scenarios.load(scenario, [*(overrides or ()), *FEDAVG, *(baseline or ())])
        typer.echo(f"{'seed':>6}  {'scenario':>8}  {'baseline':>8}  {'difference':>10}")

        def show(pair: benchmark.Pair) -> None:
            typer.echo(
                f"{pair.seed:>6}  {pair.accuracy:>8.2%}  {pair.baseline_accuracy:>8.2%}"
                f"  {100 * pair.difference:>+10.2f}"
            )

        comparison = benchmark.run(ours, theirs, chosen, show)
        width = comparison.half_width
        interval = f" +- {100 * width:.2f} (95 % interval)" if math.isfinite(width) else " (one seed: no interval)"
        facts = [
            ("accuracy against the baseline", f"{100 * comparison.difference:+.2f} points{interval}"),
            ("bytes up", f"{comparison.up_ratio:,.1f}x less"),
            ("bytes up and down", f"{comparison.both_ratio:,.1f}x less"),
        ]
        typer.echo()
        common.show_facts(facts)
        common.write_json(
            json_file,
            {
                "scenario": ours.model_dump(mode="json"),
                "baseline": theirs.model_dump(mode="json"),
                "pairs": [{**pair._asdict(), "difference": pair.difference} for pair in comparison.pairs],
                "difference": comparison.difference,
                "half_width": width if math.isfinite(width) else None,
                "up_ratio": comparison.up_ratio,
                "both_ratio": comparison.both_ratio,
            },
        )


def tiers(
    scenario: Annotated[str, typer.Argument(**common.DOCUMENTED)] = "digits",
    overrides: common.SetOption = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Only this row of the table; may be given again.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", show_default=False, help="Such as 1-3 or 3,5,8. Default: 1.")
    ] = "1",
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", show_default=False, help="Folder for the runs (runs/tiers); finished ones are not run again."
        ),
    ] = Path("runs/tiers"),
    json_file: common.JsonOption = None,
) -> None:
    """Compare ways to serve tiers of small devices.

    SCENARIO is as for `fedpress simulate`, with tiers that train. Each row of the table
    is one run, or made from the models of one:

    \b
      taught    that scenario: tiers train, and teach each other by distillation
      apart     each tier's model is trained separately
      heterofl  HeteroFL: each weight is the mean over the models that have it
      smallest  all clients train the smallest tier's model
      students  all clients train the global model; students are made at the end
      proxy     control: the tiers' models, trained on the labeled proxy data alone
      tuned     control: the models of "apart", then trained on the labeled proxy data
      late      control: students made at the end from the global model of "apart"

    An interrupted command continues where it stopped.

    \b
    Example:
      fedpress bench tiers digits --set 'teaching={every: 5}' --set \\
          'students.tiers=[{name: phone, parameters: 0.1, trains: true}]'
    """
    with common.clear_errors("simulation", json_file):
        numbers = common.parse_seeds(seeds)
        from fedpress.simulations.benchmarks import tiers as benchmark
        from fedpress.simulations.scenario import scenario as scenarios

        base = scenarios.load(scenario, overrides or ())
        names = only or [*benchmark.ROWS, *benchmark.CONTROLS]
        rows = []
        for seed in numbers:
            for row in benchmark.run(base, names, seed, out / f"seed-{seed}"):
                rows.append(row)
                accuracies = ", ".join(f"{tier or 'global'} {value:.2%}" for tier, value in row.accuracy.items())
                typer.echo(f"seed {seed}, {row.name}: {accuracies}")
        typer.echo()
        common.show_rows(*benchmark.table(rows))
        gaps = benchmark.closed(rows)
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
