"""What a server may have a node run: a list of references on the node, `workloads` in its settings.

Flower's SuperNode installs and runs the app that the server sends, and a run's configuration names functions, classes
and folders: whoever has the server would have the devices. A node with a list runs fedpress's own ClientApp, with a
workload of the list, on fedpress's own tasks or classes of the list, and on no folder of its own but `data-folder`.

The list is the entry `workloads` of the node's configuration, with spaces between; without the entry, as in
simulations, and with `ANY`, nothing is restricted.
"""

from __future__ import annotations

import io
import re
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedpress.compression.errors import FedpressError

OWN: Final = "fedpress.simulations.runs.job:load"
"""fedpress's own workload, which trains scenarios."""
CLIENT_APP: Final = "fedpress.client.app:app"
"""fedpress's own ClientApp."""
ANY: Final = "*"
"""Entry of a list: whatever the server names or sends."""
KEY: Final = "workloads"
"""Key of the node's configuration."""
OWN_FILES: Final = ("data-folder", "initial-weights", "base-weights", "base-folder")
"""Keys of the node's configuration that name files of its own, and go over the run's configuration."""
OF_THE_NODE: Final = (KEY, *OWN_FILES)
"""Keys of a run's configuration that the node alone sets."""
REFERENCE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
"""Form of an entry but `ANY`: "module:attribute"."""
CODELESS: Final = frozenset({"pyproject.toml", ".info/CONTENT", "README.md", "LICENSE"})
"""Files of an app that only refers to installed ones."""
MOST_APP_BYTES: Final = 1 << 20
"""Largest such file."""


class WorkloadRefused(FedpressError, ValueError):
    """The server wants this node to run or read what its list does not have."""


def listed(node_config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the list of a node; None: it has none, and nothing is restricted."""
    entries = node_config.get(KEY)
    found = None if entries is None else tuple(str(entries).split())
    return None if found is None or ANY in found else found


def run_config(given: Mapping[str, Any], node_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration as a node uses it.

    Args:
        given: As the server sends it.
        node_config: Configuration of the node.

    Returns:
        The same with the node's own files and list, which a server cannot give. On a node with a list, `out`,
        a folder of the server's machine, is left out.
    """
    config = {key: value for key, value in given.items() if key not in OF_THE_NODE}
    config |= {key: node_config[key] for key in OWN_FILES if node_config.get(key)}
    if (entries := listed(node_config)) is not None:
        config[KEY] = " ".join(entries)
        config.pop("out", None)
    return config


def check(reference: str, allowed: Iterable[str] | None, what: str) -> None:
    """Check that a node may run what a server names.

    Args:
        reference: "module:attribute".
        allowed: List of the node; None: it has none.
        what: Kind of the reference, for the error: "workload".

    Raises:
        WorkloadRefused: It is not on the list.
    """
    if allowed is not None and reference not in allowed:
        raise WorkloadRefused(
            f"the server's run names the {what} {reference[:200]!r}, and this node's `workloads` are"
            f" {', '.join(allowed) or 'none'}; if you trust that code, add it to `workloads` in the settings of"
            " `fedpress client`"
        )


def check_app(data: bytes, allowed: Iterable[str] | None) -> None:
    """Check an app (FAB) that a server sends, before anything of it is installed or run.

    On a node with a list, the app may only refer to an installed ClientApp, fedpress's own or one of the list, and
    hold no file that Python could import.

    Args:
        data: Bytes of the app, a zip file.
        allowed: List of the node; None: it has none.

    Raises:
        WorkloadRefused: It is no such app.
    """
    if allowed is None:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if strange := [name for name in names if name not in CODELESS]:
                raise WorkloadRefused(
                    f"the server sends an app with files of its own ({len(strange)}, such as {strange[0][:100]!r}), and"
                    f" this node runs installed code alone; `workloads: ['{ANY}']` in the settings of `fedpress client`"
                    " runs whatever the server sends"
                )
            if len(names) != len(set(names)) or any(entry.file_size > MOST_APP_BYTES for entry in archive.infolist()):
                raise WorkloadRefused("the server sends an app with a file twice, or one that is too large")
            components = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]["components"]
            client_app = components["clientapp"]
    except WorkloadRefused:
        raise
    except Exception as error:  # zipfile has many classes for the faults of a file
        raise WorkloadRefused(f"the server sends an app that cannot be read: {error!r}"[:500]) from None
    check(str(client_app), (CLIENT_APP, *allowed), "ClientApp")
