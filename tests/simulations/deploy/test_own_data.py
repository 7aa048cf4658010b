"""A node with data of its own trains on all of them, and on nothing else; what it shares with others stays the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedpress.client import app
from fedpress.simulations.runs import job
from fedpress.simulations.scenario import scenario
from fedpress.simulations.tasks.registry import TaskError

SCENARIO = """
task: {name: text, data_dir: %s}
clients: 2
rounds: 1
partition: {kind: natural}
sampling: {clients_per_round: 2}
"""


def write_books(folder: Path, *words: str) -> Path:
    folder.mkdir()
    for number, word in enumerate(words):
        (folder / f"{number}.txt").write_text(" ".join(f"{word} {count}" for count in range(2000)))
    return folder


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, str]:
    """The run's configuration, with a task whose data are divided among two clients."""
    books = write_books(tmp_path / "shared", "apple", "pear")
    (tmp_path / "scenario.yaml").write_text(SCENARIO % books)
    return {"workload": job.REFERENCE, "scenario": scenario.load(tmp_path / "scenario.yaml").to_json()}


def of_node(config: dict[str, str], **node: str | int) -> app.Work:
    """The work of a node, as the ClientApp finds it."""
    own = {key.replace("_", "-"): value for key, value in node.items()}
    return app._work(Context(run_id=1, node_id=9, node_config=own, state=RecordDict(), run_config=dict(config)))


def test_it_trains_on_all_of_its_own(shared: dict[str, str], tmp_path: Path) -> None:
    own = write_books(tmp_path / "own", "cherry", "plum", "grape")
    work = of_node(shared, data_folder=str(own), partition_id=0)
    assert len(work.examples(0).targets) == len(work.task.data().train.targets)
    assert torch.equal(work.examples(0).inputs, work.examples(12345678901234).inputs)  # a node's id is no index
    other = of_node(shared, partition_id=0)
    assert len(other.examples(0).targets) < len(other.task.data().train.targets)
    assert not torch.equal(work.examples(0).inputs[:5], other.examples(0).inputs[:5])


def test_model_and_encoder_are_those_of_the_run(shared: dict[str, str], tmp_path: Path) -> None:
    own = write_books(tmp_path / "own", "cherry", "plum", "grape")
    with_own, without = (of_node(shared, **node) for node in ({"data_folder": str(own)}, {}))
    assert with_own.layout == without.layout
    found, expected = (work.initial() for work in (with_own, without))
    assert found and expected and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_task_without_a_folder_says_so(tmp_path: Path) -> None:
    config = {"workload": job.REFERENCE, "scenario": scenario.load("digits").to_json()}
    work = of_node(config, data_folder=str(tmp_path))
    with pytest.raises(TaskError, match="task.data_dir: task 'digits' does not take it"):
        work.examples(0)
