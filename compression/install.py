"""How to install a part of fedpress that is missing, from where the rest came from.

fedpress is on no package index yet: `pip install 'fedpress[client]'` finds nothing, or somebody else's package. So
every remedy names the folder, wheel or URL that this installation was made from, as pip has recorded it (PEP 610).
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def command(extra: str) -> str:
    """Return the command that installs an extra beside what is installed.

    Args:
        extra: Name of the extra, such as "client".
    """
    try:
        recorded = metadata.distribution("fedpress").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from a checkout by its path
        return _in_a_checkout(extra)
    return _command(extra, json.loads(recorded) if recorded else {})


def missing(what: str, module: str, extra: str) -> str:
    """Return the text of an error: a module is missing, and how to install it.

    >>> missing("this command", "torch", "simulation").partition(": ")[0]
    'this command needs torch, which is not installed'

    Args:
        what: What needs the module.
        module: Name of the module.
        extra: Extra that brings it.
    """
    return f"{what} needs {module}, which is not installed: {command(extra)}"


def _command(extra: str, origin: dict[str, Any]) -> str:
    """Return the command for a distribution's direct URL; an empty one: it came from an index or a folder of wheels.

    >>> _command("client", {"url": "https://example.org/fedpress-0.1.0-py3-none-any.whl", "archive_info": {}})
    "pip install 'fedpress[client] @ https://example.org/fedpress-0.1.0-py3-none-any.whl'"
    >>> _command("hub", {"url": "https://example.org/fp.git", "vcs_info": {"vcs": "git", "commit_id": "0af1"}})
    "pip install 'fedpress[hub] @ git+https://example.org/fp.git@0af1'"
    """
    url = origin.get("url", "")
    if not url:
        return (
            f"pip install 'fedpress[{extra}]' --find-links FOLDER, with the folder that holds its wheel: "
            "fedpress is not on PyPI"
        )
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if path is not None and not path.exists():
        return _in_a_checkout(extra)
    if path is not None and "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{path}[{extra}]'"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return f"pip install 'fedpress[{extra}] @ {url}'"


def _in_a_checkout(extra: str) -> str:
    return f"pip install '.[{extra}]' in a checkout of fedpress, which is not on PyPI"
