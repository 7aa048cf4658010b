"""A hub as a process of its own, as an operator starts it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


class HubProcess:
    """`fedpress hub` with these options, on 127.0.0.1; use it as a context manager."""

    def __init__(self, store: Path, *options: object, port: int = 0) -> None:
        command = [sys.executable, "-m", "fedpress.simulations", "hub", str(store), "--listen", f"127.0.0.1:{port}"]
        self.log = store.parent / f"hub-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, options)], stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.port = self._port()
        except BaseException:
            self.kill()
            raise
        self.address = f"127.0.0.1:{self.port}"

    def _port(self) -> int:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = re.search(r"hub listens on 127\.0\.0\.1:(\d+)", self.text())
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the hub does not listen:\n{self.text()}")

    def text(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self, seconds: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def resident(self) -> int:
        """Bytes of memory that it has now."""
        (line,) = [row for row in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in row]
        return int(line.split()[1]) * 1024

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
