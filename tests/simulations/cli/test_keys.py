"""`fedpress keys`: the files that the commands write, and a SuperLink that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.command_line import invoke

from fedpress.simulations.deploy import flower_processes, keys

Refused = Callable[[list[str]], str]


def test_a_fleet_is_made_from_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    for command, written in (
        (["init", folder, "--host", "fed.example.org"], ["ca.crt", "ca.key", "server.crt", "server.key"]),
        (["node", folder, "phone-1"], ["nodes/phone-1", "nodes/phone-1.pub"]),
        (["certificate", folder, "phone-1", "--days", "9"], ["clients/phone-1.crt", "clients/phone-1.key"]),
    ):
        done = invoke("keys", *command)
        assert done.exit_code == 0 and done.stdout.startswith("wrote "), done.output
        assert all((folder / name).is_file() for name in written)
    assert keys.check(keys.Folder(folder)) == []
    before = (folder / "server.crt").read_bytes()
    renewed = invoke("keys", "renew", folder, "--days", "20")
    assert renewed.exit_code == 0 and "valid for 20 days; restart the server" in renewed.stdout
    assert (folder / "server.crt").read_bytes() != before
    again = invoke("keys", "init", folder)
    assert again.exit_code == 2 and "keys are never overwritten" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["init", "new", "--host", "a:1"], "got the host 'a:1'; expected a name or an address, without a port"),
        (["init", "new", "--days", "0"], "got 0, expected at least 1"),
        (["renew", "full"], "`fedpress keys init` makes it"),
        (["node", "new", "../x"], "got the name '../x'; expected letters, digits"),
        (["certificate", "new", "phone"], "`fedpress keys init` makes it"),
        (["list", "full"], "cannot read full/ca.crt"),
        (["register", "full"], "cannot read full/ca.crt"),
        (["revoke", "full", "phone"], "cannot read full/ca.crt"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(arguments: list[str], text: str, refused: Refused) -> None:
    assert text in refused(["keys", *arguments])


def test_a_superlink_that_does_not_answer_is_named_and_nothing_is_revoked(tmp_path: Path) -> None:
    folder, address = tmp_path / "keys", f"127.0.0.1:{flower_processes.free_port()}"
    keys.init(folder, (), 1)
    keys.node(folder, "phone-1")
    for command in (["list", folder], ["register", folder], ["revoke", folder, "phone-1"]):
        done = invoke("keys", *command, "--superlink", address)
        assert done.exit_code == 2 and f"the SuperLink at {address} does not answer" in done.stderr
    assert (folder / "nodes" / "phone-1.pub").is_file()
