"""A record that goes to many is written once, and its file stays as long as a message needs it."""

from pathlib import Path

import numpy as np

from fedpress.compression.messages import records
from fedpress.simulations.engines.shared_records import SharedRecords
from fedpress.simulations.engines.worker_process import KEPT_RECORDS


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_record_is_one_file_and_those_in_use_outlive_the_last_few(tmp_path: Path) -> None:
    shared = SharedRecords(tmp_path)
    first, *others = (records.from_numpy({"w": np.full(3, n, np.float32)}) for n in range(KEPT_RECORDS + 2))
    name = shared.use(first)
    assert shared.use(first) == name and files(tmp_path) == {name}
    for other in others:
        shared.release(shared.use(other))
    assert len(files(tmp_path)) == KEPT_RECORDS + 1 and name in files(tmp_path)
    shared.release(name)
    assert name in files(tmp_path)  # one message still needs it
    shared.release(name)
    assert name not in files(tmp_path) and len(files(tmp_path)) == KEPT_RECORDS
    assert shared.use(first) != name  # written anew
