"""A node with files of its own: it trains on all of its data and on nothing else; its initial weights are not trusted.

What it shares with others stays the same.
"""

import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, RecordDict
from safetensors.torch import save_file
from tests.apps.service_process import Service, fedpress, until

from fedpress.client import app
from fedpress.compression.ledger import Ledger
from fedpress.simulations.deploy import children, flower_processes
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job
from fedpress.simulations.scenario import scenario
from fedpress.simulations.tasks.digits import Digits
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


def weights(path: Path, seed: int) -> Path:
    """Write initial weights of the task `digits`."""
    torch.manual_seed(seed)
    save_file(Digits().model().state_dict(), path)
    return path


def test_its_copy_of_the_initial_weights_is_its_own_file(tmp_path: Path) -> None:
    servers, copy = weights(tmp_path / "server.safetensors", 1), weights(tmp_path / "copy.safetensors", 1)
    config = {"workload": job.REFERENCE, "scenario": scenario.load("digits", [f"init={servers}"]).to_json()}
    expected = of_node(config).initial()
    servers.unlink()  # as on another machine
    found = of_node(config, initial_weights=str(copy)).initial()
    assert expected and found and all(np.array_equal(found[name], expected[name]) for name in expected)
    without = of_node(config, partition_id=1)
    assert without.initial() is None and without.blank_model()


@pytest.mark.slow
@pytest.mark.deployment
def test_in_a_deployment_the_model_is_sent_to_the_device_that_does_not_have_it(tmp_path: Path) -> None:
    """Two devices, one with the server's file and one with another: both train the server's model."""
    link, servers = f"127.0.0.1:{flower_processes.free_port()}", weights(tmp_path / "server.safetensors", 1)
    own = {"same": weights(tmp_path / "same.safetensors", 1), "other": weights(tmp_path / "other.safetensors", 2)}
    assert fedpress(tmp_path, "keys", "init", "keys", "--host", "localhost").returncode == 0
    overrides = ["clients=2", "rounds=2", "sampling.clients_per_round=2", "students.tiers=[]", f"init={servers}"]
    files: dict[str, Any] = {"server": {"scenario": "digits", "overrides": overrides, "listen": link, "metrics": None}}
    for number, (name, file) in enumerate(own.items()):
        assert fedpress(tmp_path, "keys", "node", "keys", name).returncode == 0
        files[name] = {
            "superlink": link, "ca": "keys/ca.crt", "key": f"keys/nodes/{name}", "state": f"state-{name}",
            "partition": number, "threads": 1, "init": str(file),
        }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    running = [Service(tmp_path, "server", "server.yaml", name="server")]
    try:
        until("the server listens", lambda: "is submitted" in running[0].text, *running)
        running += [Service(tmp_path, "client", f"{name}.yaml", name=name) for name in own]
        until("it is over", lambda: running[0].process.poll() is not None, *running[1:])
    finally:
        for service in running:
            with suppress(subprocess.TimeoutExpired):
                if service.process.poll() is None:
                    service.stop()
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()
        for state in ("server-state", "state-same", "state-other"):
            children.end_all(tmp_path / state / "flwr", wait=0.0)
    folder = RunFolder(tmp_path / "run")
    results = folder.load_results()
    assert results.status == "finished" and [(r.replies, r.refused) for r in results.rounds] == [(2, 0), (2, 0)]
    down: Counter[tuple[int, int]] = Counter()
    for entry in Ledger.load(folder.ledger).rows:
        if entry.direction == "down":
            down[entry.round, entry.node] += entry.bytes
    nodes = sorted({node for _, node in down}, key=lambda node: down[1, node])
    whole = sum(tensor.nbytes for tensor in Digits().model().state_dict().values())
    assert down[1, nodes[0]] < 2_000 and whole < down[1, nodes[1]] < whole + 4_000  # billed, where it was sent
    assert all(down[2, node] < 10_000 for node in nodes)
    said = [(tmp_path / f"state-{name}" / "supernode.log").read_text().count("are not the server's") for name in own]
    assert said == [0, 1]
