"""A small disk that can be full: a tmpfs in a mount namespace, which needs no root where users may make namespaces."""

import subprocess
from pathlib import Path

CHUNK = bytes(1 << 12)


class SmallDisk:
    """A tmpfs over a folder, seen by what runs `within`; it lasts until `close`.

    Attributes:
        within: put before a command, has it see the disk; it begins in the folder above.
        folder: where others find what is on it.
    """

    def __init__(self, holder: "subprocess.Popen[str]", folder: Path) -> None:
        self._holder = holder
        enter = ("nsenter", "--user", "--mount", "--preserve-credentials", f"--target={holder.pid}", "--")
        self.within = (*enter, "env", f"--chdir={folder.parent}")
        self.folder = Path(f"/proc/{holder.pid}/root{folder}")

    @classmethod
    def mounted(cls, folder: Path, size: str = "12m") -> "SmallDisk | None":
        """Mount one; None: it is not permitted here, or the commands are missing."""
        folder.mkdir(parents=True)
        script = 'mount -t tmpfs -o size="$1",mode=700 small "$0" && echo mounted && exec sleep infinity'
        try:
            holder = subprocess.Popen(
                ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder), size],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError:
            return None
        disk = cls(holder, folder)
        assert holder.stdout is not None
        if holder.stdout.readline() == "mounted\n":
            return disk
        disk.close()
        return None

    def fill(self) -> None:
        """Take all the room that there is."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(CHUNK):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """Give it back."""
        (self.folder / "filler").unlink()

    def close(self) -> None:
        """Unmount it; what was on it is gone."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
