"""What a server may have a node run: only what the node's list has, whatever the run's configuration says."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedpress.client import app, workloads
from fedpress.client.workloads import WorkloadRefused
from fedpress.simulations.runs import job
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.rounds import TaskChoice


def test_the_names_are_fedpresss_own() -> None:
    assert workloads.OWN == job.REFERENCE
    assert workloads.CLIENT_APP == f"{app.__name__}:app"


def work(run_config: dict[str, Any], **node: str) -> app.Work:
    """The work of a node, as the ClientApp finds it."""
    config = {key.replace("_", "-"): value for key, value in node.items()}
    return app._work(Context(run_id=1, node_id=9, node_config=config, state=RecordDict(), run_config=run_config))


def text(**task: str) -> str:
    """A scenario with changes of its task, as a server sends it."""
    whole = scenario.load("digits", ["clients=2", "sampling.clients_per_round=2"])
    return whole.model_copy(update={"task": TaskChoice(**{"name": "digits", **task})}).to_json()


@pytest.mark.parametrize("reference", ["os:system", "subprocess:Popen", "fedpress.simulations.runs.plan:load"])
def test_a_workload_outside_the_list_is_refused_and_the_setting_is_named(reference: str) -> None:
    with pytest.raises(WorkloadRefused, match=f"names the workload '{reference}'.*add it to `workloads`"):
        work({"workload": reference}, workloads=workloads.OWN)


def test_a_servers_list_does_not_count() -> None:
    with pytest.raises(WorkloadRefused):
        work({"workload": "os:system", "workloads": "*"}, workloads=workloads.OWN)


def test_a_class_of_ones_own_needs_to_be_on_the_list(tmp_path: Path) -> None:
    sent = {"workload": job.REFERENCE, "scenario": text(name="tests.apps.stock_task:Stock", folder=str(tmp_path))}
    with pytest.raises(WorkloadRefused, match="names the task 'tests.apps.stock_task:Stock'"):
        work(sent, workloads=workloads.OWN)
    loaded = work(sent, workloads=f"{workloads.OWN} tests.apps.stock_task:Stock")
    assert loaded.scenario.task.folder is None  # type: ignore[attr-defined]  # what is installed here, is meant


def test_a_server_names_no_folder_of_a_node(tmp_path: Path) -> None:
    sent = {"workload": job.REFERENCE, "scenario": text(name="text", data_dir="/home/somebody"), "out": str(tmp_path)}
    with pytest.raises(WorkloadRefused, match="wants the files in '/home/somebody' of this device; name the folder by"):
        work(sent, workloads=workloads.OWN)
    with pytest.raises(WorkloadRefused):  # nor by the node's own key
        work({**sent, "data-folder": "/home/somebody"}, workloads=workloads.OWN)
    own = work(sent, workloads=workloads.OWN, data_folder=str(tmp_path))
    assert own.scenario.task.options["data_dir"] == str(tmp_path) and own.out is None  # type: ignore[attr-defined]


def test_without_a_list_and_with_the_star_all_is_as_the_server_says(tmp_path: Path) -> None:
    sent = {"workload": job.REFERENCE, "scenario": text(name="text", data_dir=str(tmp_path)), "out": str(tmp_path)}
    for node in ({}, {"workloads": "*"}):
        loaded = work(sent, **node)
        assert loaded.scenario.task.options["data_dir"] == str(tmp_path)  # type: ignore[attr-defined]
        assert loaded.out == tmp_path  # type: ignore[attr-defined]


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


PROJECT = b'[tool.flwr.app.components]\nclientapp = "fedpress.client.app:app"\n'


@pytest.mark.parametrize(
    "name",
    [
        "app.py",
        "torch/__init__.py",
        "x.so",
        "x.pyc",
        "../x.py",
        "/x",
        "sitecustomize.py",
        ".info/x",
        "LICENSE/",
        "a.zip",
    ],
)
def test_an_app_with_a_file_that_could_be_imported_is_refused(name: str) -> None:
    workloads.check_app(zipped(**{"pyproject.toml": PROJECT, ".info/CONTENT": b"", "README.md": b""}), ())
    with pytest.raises(WorkloadRefused, match="files of its own"):
        workloads.check_app(zipped(**{"pyproject.toml": PROJECT, name: b""}), ())
    workloads.check_app(zipped(**{name: b""}), None)  # a node without a list


@pytest.mark.parametrize(
    "project",
    [b"", b"\xff", b"tool = 3", b"[tool.flwr.app]", PROJECT.replace(b"app:app", b"app:other"), b" " * (2 << 20)],
    ids=["empty", "no text", "no table", "no components", "another", "too large"],
)
def test_an_app_without_a_component_of_the_list_is_refused(project: bytes) -> None:
    with pytest.raises(WorkloadRefused):
        workloads.check_app(zipped(**{"pyproject.toml": project}), (workloads.OWN,))


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_whatever_is_sent_is_an_app_or_refused(noise: bytes, place: int, byte: int) -> None:
    data = bytearray(zipped(**{"pyproject.toml": PROJECT}))
    data[place % len(data)] = byte
    for sent in (noise, bytes(data)):
        try:
            workloads.check_app(sent, ())
        except WorkloadRefused:
            pass


@given(st.from_regex(workloads.REFERENCE, fullmatch=True))
def test_an_entry_of_a_list_needs_no_quotes(entry: str) -> None:
    assert workloads.listed({"workloads": f"{workloads.OWN} {entry}"}) == (workloads.OWN, entry)
