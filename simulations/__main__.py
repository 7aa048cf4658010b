"""Entry point of the command line `fedpress`: registers the commands of `cli/`.

Light to start: each command imports what it needs, so that help is fast and works without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from fedpress.simulations.cli import common, hub, keys, probe, pull, report, service, simulate
from fedpress.simulations.cli.bench import bench

main = typer.Typer(no_args_is_help=True, **common.PLAIN)
main.add_typer(bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedpress {version('fedpress')}")
        raise typer.Exit


@main.callback(epilog="`fedpress COMMAND --help` explains a command and gives examples.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated learning on Flower for links that are slow, metered or lossy.

    Clients send the largest entries of their updates, entropy-coded; the server
    makes small, quantized students of the global model for download.

    \b
    Start with:
      fedpress simulate      a whole run on real data, about two minutes
      fedpress init study    a scenario and a task of your own to change
    """


COMMANDS: tuple[Callable[..., None], ...] = (
    simulate.simulate,
    simulate.students,
    report.report,
    report.inspect,
    probe.probe,
    simulate.init,
    service.server,
    service.client,
    hub.hub,
    hub.hub_token,
    pull.pull,
    pull.run,
)
for command in COMMANDS:
    main.command()(command)
main.add_typer(keys.keys, name="keys")

if __name__ == "__main__":
    sys.exit(main())
