"""Text from files and other machines, so that a terminal, a table or a figure shows it and does nothing else with it.

Names of tiers, layers and reasons come from scenarios, bundles and clients. A terminal obeys control characters in
them, a line feed breaks a table, and XML allows neither.
"""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with its control characters, also those that turn the direction of writing, as escapes.

    >>> printable("phone"), printable("a\x1b[2Jb\n"), printable("two\nlines", keep="\n")
    ('phone', 'a\\x1b[2Jb\\n', 'two\nlines')

    Args:
        text: Any text.
        keep: Characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii") for one in text
    )


def markdown(text: str) -> str:
    r"""Return a text as a cell of a Markdown table, which takes it literally.

    >>> markdown("a|b <c>")
    'a\\|b &lt;c>'
    """
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
