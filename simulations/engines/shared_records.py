"""Records that go to many clients, such as the model or pieces of a payload: files that each worker reads once."""

from collections import Counter, OrderedDict
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedpress.compression.messages import records
from fedpress.simulations.engines.worker_process import KEPT_RECORDS


class SharedRecords:
    """Files of the last `KEPT_RECORDS` shared records, and of those that messages under way need.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: OrderedDict[int, tuple[ArrayRecord | ConfigRecord, str]] = (
            OrderedDict()
        )  # id -> the record itself, its file
        self._uses: Counter[str] = Counter()  # file -> messages under way that need it
        self._written = 0

    def use(self, record: ArrayRecord | ConfigRecord) -> str:
        """Return the name of a record's file, written at its first use, and count one more message that needs it."""
        known = self._files.get(id(record))
        name = known[1] if known is not None else self._write(record)
        self._uses[name] += 1
        return name

    def release(self, name: str) -> None:
        """Count one message less that needs a file; remove the file if none is left and its record is not kept."""
        self._uses[name] -= 1
        self._remove_unused(name)

    def _write(self, record: ArrayRecord | ConfigRecord) -> str:
        self._written += 1
        name = f"record-{self._written}"
        with (self._folder / name).open("wb") as file:
            file.writelines(records.content_pieces(RecordDict({"record": record})))
        self._files[id(record)] = (record, name)  # holding the record keeps its id from being used again
        while len(self._files) > KEPT_RECORDS:
            _, (_, oldest) = self._files.popitem(last=False)
            self._remove_unused(oldest)
        return name

    def _remove_unused(self, name: str) -> None:
        if self._uses[name] <= 0 and name not in {kept for _, kept in self._files.values()}:
            del self._uses[name]
            (self._folder / name).unlink(missing_ok=True)
