"""What a run needs is looked for before there is a run folder."""

from pathlib import Path

import pytest

from fedpress.compression.errors import FedpressError
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import launch
from fedpress.simulations.runs.observer import Observer
from fedpress.simulations.scenario import scenario

SHORT = [
    "clients=4", "rounds=1", "sampling.clients_per_round=2", "workers=1", "students.tiers=[]",
    "training={steps: 2, epochs: null}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task={name: fashion-mnist, data_dir: /nowhere}", "the folder /nowhere does not exist"),
        ("clients=5000", "5000 clients cannot share 1037 training examples"),
        ("network={trace: /nowhere.csv}", "cannot read /nowhere.csv"),
        ("training.device=gpu", "training.device"),
        ("students.signing_key=/nowhere.pem", "/nowhere.pem"),
    ],
)
def test_what_is_not_there_is_said_before_there_is_a_folder(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(FedpressError, match=expected):
        launch.launch(scenario.load("digits", [*SHORT, override]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_flowers_engine_refuses_virtual_time_before_there_is_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(FedpressError, match="`network`, which needs the virtual time"):
        launch.launch(scenario.load("digits", [*SHORT, "network=lte"]), out=tmp_path / "run", engine="flower")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_is_started_and_goes_on_to_the_same_model(tmp_path: Path) -> None:
    chosen = scenario.load("digits", [*SHORT, "rounds=2"])

    class Stop(Observer):
        def on_round(self, result: object) -> None:
            raise KeyboardInterrupt

    expected = launch.launch(chosen, out=tmp_path / "whole", keep_payloads=True)
    assert len(list(RunFolder(tmp_path / "whole").payloads.rglob("*.fp"))) == 4
    with pytest.raises(KeyboardInterrupt):
        launch.launch(chosen, Stop(), out=tmp_path / "run")
    assert launch.launch(chosen, resume=tmp_path / "run").model == expected.model
