"""What every command of the command line shares: options, clear errors, JSON.

Light to import: whatever a command needs beyond this, it imports itself.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fedpress.compression.errors import FedpressError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it; 2 stands for input that cannot be used."""

DOCUMENTED: dict[str, Any] = {"hidden": True}
"""Arguments are explained in the text of their command: typer 0.20 on click 8.5 loses an argument's own help."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}

EXTRA_MODULES = frozenset(
    "flwr flwr_datasets datasets torch torch_pruning safetensors sklearn pandas matplotlib jinja2 markupsafe"
    " cryptography google grpc grpc_health grpc_reflection onnx onnxruntime prometheus_client tensorboard ray".split()
)
"""What the extras bring, by import name."""

SILENT = ("GRPC_VERBOSITY", "NONE")
"""gRPC's own lines on standard error, one for each failed handshake; a variable that is set already stays."""

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON to FILE.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario; may be given again."),
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard into RUN/tensorboard.")
]


def _positive(count: int | None) -> int | None:
    if count is not None and count < 1:
        raise typer.BadParameter(f"got {count}, expected at least 1")
    return count


COUNT: dict[str, Any] = {"metavar": "N", "show_default": False, "callback": _positive}


def _at_least_one(value: float | None) -> float | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"got {value:g}, expected at least 1")
    return value


def not_negative(value: float) -> float:
    """Return an option's number. Raises BadParameter below 0."""
    if value < 0:
        raise typer.BadParameter(f"got {value:g}, expected 0 or more")
    return value


# Not typer's own way: in a help text it would put a backslash before the bracket of its [required] and [x>=1].
SECONDS: dict[str, Any] = {"metavar": "S", "show_default": False, "callback": _at_least_one}


def file_option(help_text: str, *names: str, metavar: str = "FILE") -> Any:
    """Return an option that names a file."""
    return typer.Option(*names, metavar=metavar, help=help_text)


@contextmanager
def clear_errors(extra: str, json_file: Path | None = None, plot: Path | None = None) -> Iterator[None]:
    """Turn what a user can mend into one message and its exit code: bad input, or an extra that is not installed.

    SIGTERM is as Ctrl-C: batch systems send it, and a shell's background ignores SIGINT. Services handle it themselves.

    Args:
        extra: what the command needs; the message names it where a module is missing.
        json_file: where the command will write its figures; that it can is found out before a long run, not after it.
        plot: where it will draw them.
    """
    check_target("--json", json_file)
    check_target("--plot", plot)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except FedpressError as error:
        leave(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        leave("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA_MODULES:
            raise
        leave(f"error: this command needs {name}, which is not installed: pip install 'fedpress[{extra}]'", 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def check_target(option: str, path: Path | None) -> None:
    """End the command if the file that an option names cannot be written: before a long run, not after it."""
    if path is None:
        return
    if not path.parent.is_dir():
        leave(f"error: {option} {path}: there is no folder {path.parent}", 2)
    if path.is_dir():
        leave(f"error: {option} {path}: this is a folder; give the name of a file", 2)


def leave(message: str, code: int) -> NoReturn:
    """End the command with a message on standard error."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print one line for each name and value."""
    from fedpress.simulations.report import tables

    show_lines(tables.fact_lines(facts))


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    from fedpress.simulations.report import tables

    show_lines(tables.table_lines(columns, rows))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines as they are, however wide the screen is."""
    for line in lines:
        typer.echo(line)


def show_figures(benchmark: Any, figures: Any, json_file: Path | None) -> None:
    """Print the table and the lines of a benchmark with `COLUMNS`, `rows`, `facts` and `as_json`."""
    show_rows(benchmark.COLUMNS, benchmark.rows(figures))
    typer.echo()
    show_facts(benchmark.facts(figures))
    write_json(json_file, benchmark.as_json(figures))


def parse_seeds(text: str) -> list[int]:
    """Read the seeds that an option gives; "1-10" or "3,5,8"."""
    from fedpress.simulations.suites import suite

    try:
        return suite.parse_seeds(text)
    except ValueError as error:
        leave(f"error: --seeds: {error}", 2)


def write_json(path: Path | None, data: Any) -> None:
    """Write the figures where `--json` says."""
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"JSON: {path}")
