"""Check of Flower's version: a warning if it is newer than the newest one tested."""

import functools
import re
import warnings

import flwr

TESTED = "1.42.0"
"""The newest version on which all tests have passed (constraints.txt)."""


class UntestedFlowerWarning(UserWarning):
    """Flower is newer than what fedpress was tested with."""


@functools.cache
def warn_if_untested() -> None:
    """Warn, once in a process, if Flower is newer than `TESTED`."""
    if _numbers(flwr.__version__) > _numbers(TESTED):
        warnings.warn(
            f"this is Flower {flwr.__version__}, and fedpress was tested up to {TESTED}: it may work or fail; "
            f"for the tested version: pip install 'flwr=={TESTED}'",
            UntestedFlowerWarning,
            stacklevel=2,
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version.

    >>> _numbers("1.42.0") < _numbers("1.100.0.dev20261101")
    True
    """
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
