"""A device whose clock is wrong, as its Python processes see it; libfaketime would stop their sleeps, too.

`sitecustomize` in a folder on PYTHONPATH shifts what `time` and `datetime` say is now. How far stands in a file that is
read each time, so that the clock can be set while processes run. What C code asks the kernel for, such as OpenSSL on
certificates, is not shifted.
"""

import os
from pathlib import Path

SHIFT = "FEDPRESS_TEST_SKEW"
"""Environment variable: the file with the seconds that the clock is ahead."""

_SITECUSTOMIZE = """
import ctypes, datetime, gc, os, time

def skew(file=os.environ["FEDPRESS_TEST_SKEW"]):
    with open(file) as found:
        return float(found.read())

seconds, nanoseconds, now = time.time, time.time_ns, datetime.datetime.now
time.time = lambda: seconds() + skew()
time.time_ns = lambda: nanoseconds() + int(skew() * 1e9)
# In the class itself: C code, such as pandas', crashes when there is another class in its place.
(own,) = gc.get_referents(datetime.datetime.__dict__)
own["now"] = classmethod(lambda cls, tz=None: now(tz) + datetime.timedelta(seconds=skew()))
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


class Clock:
    """The clock of the processes that have its `environment`.

    Args:
        folder: its own, to be made.
        ahead: seconds.
    """

    def __init__(self, folder: Path, ahead: float = 0.0) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._file = folder / "skew"
        self.set(ahead)
        paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        self.environment = {"PYTHONPATH": paths, SHIFT: str(self._file)}

    def set(self, ahead: float) -> None:
        """Set it so many seconds ahead of the machine's."""
        part = self._file.with_suffix(".new")
        part.write_text(str(ahead))
        part.replace(self._file)
