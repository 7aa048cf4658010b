"""The page on pretrained models: its task, scenario and settings, with an encoder of a few kilobytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.apps import lazily, tiny_encoder
from typer.testing import CliRunner

from fedpress.client.download import receive
from fedpress.compression import safetensors_files
from fedpress.compression.ledger import Ledger
from fedpress.compression.tensors.layout import Layout
from fedpress.simulations.__main__ import main
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job
from fedpress.simulations.scenario import scenario as scenarios

pytestmark = lazily.NEEDS_TEXT_MODELS

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "pretrained.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, with its hash replaced by the tiny encoder's."""
    tiny_encoder.write(tmp_path / "encoder")
    tiny_encoder.texts(tmp_path / "texts")
    sha256 = safetensors_files.sha256(tmp_path / "encoder")
    for title, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / title).write_text(re.sub(r"[0-9a-f]{64}", sha256, text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "task", raising=False)
    return tmp_path


def test_the_task_trains_adapters_and_a_head_upon_the_base(folder: Path) -> None:
    work = job.load({"scenario": scenarios.load(folder / "scenario.yaml").to_json()}).whole
    model = work.fresh_model()
    layout = Layout.of(model)
    assert all("lora_" in spec.name or "classifier" in spec.name for spec in layout.parameters)
    base = tiny_encoder.weights(folder / "encoder")
    found = model.state_dict()
    word = next(name for name in found if name.endswith("word_embeddings.weight"))
    assert (found[word] == base["embeddings.word_embeddings.weight"]).all()


@pytest.mark.long
@pytest.mark.slow
def test_the_run_of_the_page_sends_no_base_and_its_adapters_run_upon_it(folder: Path) -> None:
    """Neither the rounds nor the student's file hold the base, and a device that has it puts both together."""
    pytest.importorskip("onnxruntime", reason="the extra onnx")
    students = re.search(r"students: \{.*?\}\n", PAGE.read_text())
    assert students
    with (folder / "scenario.yaml").open("a") as file:
        file.write(students[0])
    ended = CliRunner().invoke(
        main, ["simulate", "scenario.yaml", "--set", "rounds=3", "--set", "workers=1", "--out", "run"]
    )
    assert ended.exit_code == 0, ended.output
    ledger = Ledger.load(RunFolder(folder / "run").ledger)
    base = folder / "encoder" / "model.safetensors"
    assert 0 < ledger.total() < base.stat().st_size
    bundle = folder / "run" / "bundles" / "laptop" / "0000000003.fpb"
    task = job.load({"scenario": scenarios.load(folder / "scenario.yaml").to_json()}).whole.task
    ids = task.data().test.inputs
    np.save(folder / "ids.npy", ids.numpy())
    arguments = ["run", str(bundle), "--input", "ids.npy"]
    missing = CliRunner().invoke(main, arguments)
    assert missing.exit_code == 2 and safetensors_files.sha256(base) in missing.output
    ran = CliRunner().invoke(main, [*arguments, "--base", "encoder"])
    assert ran.exit_code == 0, ran.output
    found = torch.tensor([int(line.split("\t")[1]) for line in ran.output.splitlines()])
    assert torch.equal(found, receive.load(bundle, task, folder / "encoder")(ids).argmax(dim=1))
