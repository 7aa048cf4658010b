"""Shared parts of all commands: options, error handling, tables, JSON.

Light to import, so that help is fast: a command imports what else it needs inside its function.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fedpress.compression import install
from fedpress.compression.errors import FedpressError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it; 2 stands for input that cannot be used."""

DOCUMENTED: dict[str, Any] = {"hidden": True}
"""Settings of positional arguments, which the command's text explains: typer 0.20 on click 8.5 loses their own help."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}

EXTRA_MODULES = frozenset(
    "flwr flwr_datasets datasets torch safetensors sklearn pandas matplotlib jinja2 markupsafe"
    " cryptography google grpc grpc_health grpc_reflection onnx onnxruntime prometheus_client tensorboard ray"
    " transformers peft tokenizers".split()
)
"""Import names of the packages that the extras install."""

SILENT = ("GRPC_VERBOSITY", "NONE")
"""Environment variable against gRPC's own lines on standard error, one for each failed handshake."""

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
    """Return an option's number.

    Raises:
        typer.BadParameter: It is below 0.
    """
    if value < 0:
        raise typer.BadParameter(f"got {value:g}, expected 0 or more")
    return value


# Not typer's own way: in a help text it would put a backslash before the bracket of its [required] and [x>=1].
SECONDS: dict[str, Any] = {"metavar": "S", "show_default": False, "callback": _at_least_one}


def file_option(help_text: str, *names: str, metavar: str = "FILE") -> Any:
    """Return an option that takes a path.

    Args:
        help_text: Help of the option.
        *names: Option names, such as "--ca".
        metavar: Placeholder of the value in the help.
    """
    return typer.Option(*names, metavar=metavar, help=help_text)


@contextmanager
def clear_errors(extra: str, json_file: Path | None = None, plot: Path | None = None) -> Iterator[None]:
    """End the command with one message and an exit code on bad input, a missing extra or an interrupt.

    SIGTERM is handled like Ctrl-C: batch systems send it, and background jobs of a shell ignore SIGINT.

    Args:
        extra: Extra that the command needs; named in the message where one of its modules is missing.
        json_file: Target of `--json`, checked before the command's work rather than after a long run.
        plot: Target of `--plot`, checked likewise.

    Raises:
        typer.Exit: The work ended with a FedpressError, an interrupt, or a missing module of an extra.
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
        leave(f"error: {install.missing('this command', name, extra)}", 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def check_target(option: str, path: Path | None) -> None:
    """End the command if a file cannot be written.

    Args:
        option: Name of the option, for the message.
        path: Its value; None: the option was not given.

    Raises:
        typer.Exit: The folder does not exist, or the path is a folder.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        leave(f"error: {option} {path}: there is no folder {path.parent}", 2)
    if path.is_dir():
        leave(f"error: {option} {path}: this is a folder; give the name of a file", 2)


def leave(message: str, code: int) -> NoReturn:
    """End the command.

    Args:
        message: Text for standard error.
        code: Exit code.

    Raises:
        typer.Exit: Always.
    """
    from fedpress.simulations.report import plain

    typer.echo(plain.printable(message, keep="\n"), err=True)
    raise typer.Exit(code)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print one line for each pair of name and value, the values aligned."""
    from fedpress.simulations.report import tables

    show_lines(tables.fact_lines(facts))


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table.

    Args:
        columns: Heads of the columns.
        rows: Cells of each row, as many as columns.
    """
    from fedpress.simulations.report import tables

    show_lines(tables.table_lines(columns, rows))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines, never wrapped to the width of the terminal."""
    for line in lines:
        typer.echo(line)


def show_figures(benchmark: Any, figures: Any, json_file: Path | None) -> None:
    """Print the figures of a benchmark, and write them as JSON.

    Args:
        benchmark: Module with `COLUMNS`, `rows`, `facts` and `as_json`.
        figures: What the module's `run` returned.
        json_file: Target of `--json`, if any.
    """
    show_rows(benchmark.COLUMNS, benchmark.rows(figures))
    typer.echo()
    show_facts(benchmark.facts(figures))
    write_json(json_file, benchmark.as_json(figures))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of an option such as "1-10" or "3,5,8".

    Raises:
        typer.Exit: It is neither.
    """
    from fedpress.simulations.suites import suite

    try:
        return suite.parse_seeds(text)
    except ValueError as error:
        leave(f"error: --seeds: {error}", 2)


def write_json(path: Path | None, data: Any) -> None:
    """Write figures as JSON, if asked for, and print the path.

    Args:
        path: Target of `--json`; None: nothing is written.
        data: What `json.dumps` takes.
    """
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"JSON: {path}")
