"""`fedpress bench`: the group of benchmark commands, each defined in one of the modules imported here."""

from __future__ import annotations

import typer

from fedpress.simulations.cli import bench_machine, bench_processes, bench_scenarios, common, suites

bench = typer.Typer(no_args_is_help=True, help="Run a benchmark on this machine.", **common.PLAIN)
for command in (
    bench_machine.engine,
    bench_machine.codec,
    bench_machine.reuse,
    bench_scenarios.paired,
    bench_scenarios.tiers,
    suites.communication,
    bench_processes.wire,
    bench_processes.warm,
    bench_machine.memory,
    bench_machine.scale,
    bench_machine.size,
    bench_machine.hub,
):
    bench.command()(command)
