"""A griffe extension: docstrings as this project writes them, for the site.

Examples (`>>> ...`) become code blocks, since Markdown would read them as quotations; arguments that share a line
(`width, height: Pixels.`) become an entry each.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*\n(?:(?P=indent)\S.*\n?)*", re.MULTILINE)
GROUP = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>: .*\n(?:(?P=indent) +\S.*\n)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(fenced, obj.docstring.value + "\n")
            obj.docstring.value = GROUP.sub(apart, text).rstrip()


def fenced(example: re.Match[str]) -> str:
    """An example between fences, set off by blank lines."""
    indent = example["indent"]
    return f"\n{indent}```pycon\n{example[0].rstrip()}\n{indent}```\n\n"


def apart(group: re.Match[str]) -> str:
    """An entry for each argument of a group."""
    return "".join(f"{group['indent']}{name}{group['text']}" for name in group["names"].split(", "))
