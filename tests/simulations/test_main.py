"""Help of every command, and what it imports."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.apps.command_line import fedpress, invoke

from fedpress.simulations.__main__ import main
from fedpress.simulations.scenario import scenario


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield name and command, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(main)))


def examples(text: str) -> Iterator[list[str]]:
    """Yield the words of each example of a help text."""
    for line in re.findall(r"^ +fedpress (.*)$", text.replace("\\\n", " "), re.M):
        yield shlex.split(line, comments=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page_with_an_example(command: str) -> None:
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert re.search(rf"Examples?:\n +fedpress {command}\b", done.stdout)
    assert "\\[" not in done.stdout  # typer's escaping of brackets, seen where it shows defaults


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_have_options_and_keys_that_exist(command: str) -> None:
    options = {name for option in COMMANDS[command].params for name in option.opts}
    for words in examples(COMMANDS[command].help):
        if words[: len(command.split())] != command.split():
            continue  # another command, which is tested by its own help
        assert {word for word in words if word.startswith("--")} <= options
        changes = [value for option, value in zip(words, words[1:], strict=False) if option == "--set"]
        name = next((word for word in words if word in scenario.names()), "digits")
        scenario.load(name, changes)


def test_help_lists_every_command_in_whole_sentences() -> None:
    listed = re.findall(r"^  ([\w-]+)  +(.*)$", invoke("--help").stdout.partition("Commands:")[2], re.M)
    assert " ".join(name for name, _ in listed) == (
        "simulate students report inspect probe init server client hub hub-token pull run bench keys"
    )
    assert all(text.endswith(".") and "..." not in text for _, text in listed)


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom fedpress.simulations.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'flwr', 'sklearn', 'pandas', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert re.fullmatch(r"fedpress \d+\.\d+\.\d+\n", fedpress("--version", cwd=tmp_path).stdout)
