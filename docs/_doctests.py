"""A griffe extension: examples in docstrings (`>>> ...`) become code blocks; Markdown would read them as quotations."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*\n(?:(?P=indent)\S.*\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences the examples of every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value + "\n").rstrip()


def fenced(example: re.Match[str]) -> str:
    """An example between fences, set off by blank lines."""
    indent = example["indent"]
    return f"\n{indent}```pycon\n{example[0].rstrip()}\n{indent}```\n\n"
