"""Keys that had another name before the first release: whoever uses the old one is told the new one."""

from __future__ import annotations

from typing import Final

RENAMED: Final = {
    "training.proximal": "training.proximal_mu",
}
"""Path of the old key, without the places in lists -> path of the new one."""
