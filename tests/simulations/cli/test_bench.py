"""`fedpress bench`: the list of benchmarks."""

import re

from tests.apps.command_line import invoke


def test_help_lists_every_benchmark_in_whole_sentences() -> None:
    listed = re.findall(r"^  ([\w-]+)  +(.*)$", invoke("bench", "--help").stdout.partition("Commands:")[2], re.M)
    assert {name for name, _ in listed} == {
        "engine", "size", "codec", "reuse", "paired", "tiers", "communication", "wire", "warm", "memory", "scale",
        "hub",
    }  # fmt: skip
    assert all(text.endswith(".") and "..." not in text for _, text in listed)
