"""The documents tell the truth: links lead somewhere, examples run, named files and commands exist."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EACH_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
FILE = re.compile(r"`((?:\.ci|client|compression|docs|server|simulations|tests)/[\w./-]*)`")


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [text for found, text in FENCE.findall(document.read_text(encoding="utf-8")) if found == language]


def prose(document: Path) -> str:
    """The document without its fenced blocks and comments."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names under which the headings can be linked to, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def targets(document: Path) -> list[str]:
    """Where the links and pictures of a document point, without those on the web."""
    found = [first or second for first, second in LINK.findall(prose(document))]
    return [target for target in found if not re.match(r"https?://|mailto:", target)]


@EACH_DOCUMENT
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in targets(document):
        name, _, anchor = target.partition("#")
        file = (document.parent / name) if name else document
        if not file.exists() or not file.resolve().is_relative_to(ROOT):
            broken.append(target)
        elif anchor and anchor not in anchors(file):
            broken.append(target)
    assert broken == []


@EACH_DOCUMENT
def test_named_files_exist(document: Path) -> None:
    assert [name for name in FILE.findall(prose(document)) if not (ROOT / name).exists()] == []


def is_part_of_a_file(block: str) -> bool:
    """Whether a block shows a part of a file: its first line names the file."""
    return re.match(r"# [\w/]+\.py\n", block) is not None


def reads_a_run(document: Path) -> bool:
    """Whether the Python blocks read a run folder."""
    return any('"runs/' in block for block in blocks(document, "python"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run, of the name that the documents give it."""
    folder = tmp_path_factory.mktemp("documents")
    short = [
        "rounds=2",
        "clients=4",
        "sampling.clients_per_round=4",
        "training.epochs=1",
        "students.tiers=[]",
        "workers=1",
    ]
    runner.simulate(scenario.load("digits", short), folder / "runs" / "sparse-1")
    return folder


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, marks=pytest.mark.slow if reads_a_run(path) else ()) for path in DOCUMENTS],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_python_examples_run(document: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run in turn in one namespace; those with prompts must print what they say."""
    if reads_a_run(document):
        monkeypatch.chdir(request.getfixturevalue("runs"))
    namespace: dict[str, Any] = {"__name__": "document"}
    for number, block in enumerate(blocks(document, "python"), start=1):
        name = f"{document.name}, Python block {number}"
        if ">>> " in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, name, str(document), 0)
            report: list[str] = []
            doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
            assert not report, "".join(report)
            namespace = test.globs
        elif not is_part_of_a_file(block):
            exec(compile(block, name, "exec"), namespace)


@EACH_DOCUMENT
def test_yaml_examples_are_valid(document: Path, tmp_path: Path) -> None:
    for block in blocks(document, "yaml"):
        if "task" in yaml.safe_load(block):
            (tmp_path / "scenario.yaml").write_text(block, encoding="utf-8")
            scenario.load(tmp_path / "scenario.yaml")


def commands(program: str) -> set[str]:
    """The words that follow a program's name in the documents."""
    shell = "\n".join(block for document in DOCUMENTS for block in blocks(document, "sh"))
    inline = "\n".join(code for document in DOCUMENTS for code in re.findall(r"`([^`\n]+)`", prose(document)))
    return set(re.findall(rf"^(?:[A-Z_]+=\S+ )*{program} ([a-z][a-z-]*)", f"{shell}\n{inline}", re.MULTILINE))


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = commands("make")
    assert {"simulate", "test"} <= found
    assert found - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == set()


def test_named_commands_exist() -> None:
    found = commands("fedpress")
    assert {"simulate", "report"} <= found
    for command in sorted(found):
        result = subprocess.run(
            [sys.executable, "-m", "fedpress.simulations", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"fedpress {command}: {result.stderr}"


USE_FORMAT = """
import sys
import numpy as np
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values

assert values.__file__.startswith(sys.argv[1]), values.__file__
layout = Layout.of_arrays({"weight": np.zeros(3000, np.float32)})
shared = SideInfo(layout)
drawn = np.random.default_rng(1)
codec = error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.by_name("bfloat16")))
state, sent, asked = codec.init(layout), np.zeros(3000), np.zeros(3000)
for step in range(5):
    update = drawn.normal(size=3000).astype(np.float32)
    asked += update
    payload, state = codec.encode(update, state, shared, step)
    state = codec.settle(state, True)
    encoder.decode(payload, shared).add_to(sent)
assert np.allclose(sent + state.residual, asked, atol=1e-5)
extremes = np.array([3.4028235e38, -3.4028235e38, 1e-45, -0.0, 1.00390625], np.float32)
packed = values.by_name("bfloat16").pack(extremes)
unpacked = values.by_name("bfloat16").unpack(packed, 5)
assert np.isfinite(unpacked).all() and unpacked[4] == 1.0 and unpacked[0] == -unpacked[1] > 3.3e38
"""


def test_a_value_format_takes_one_entry_in_one_file(tmp_path: Path) -> None:
    """The block of CONTRIBUTING.md, put into a copy of the codec, is all that a new format needs."""
    (block,) = [text for text in blocks(ROOT / "CONTRIBUTING.md", "python") if text.startswith("# compression/wire")]
    functions, _, formats = block.rpartition("_FORMATS = ")
    copy = tmp_path / "fedpress" / "compression"
    shutil.copytree(ROOT / "compression", copy, ignore=shutil.ignore_patterns("__pycache__", "models"))
    source = (copy / "wire" / "values.py").read_text(encoding="utf-8")
    changed = re.sub(r"^_FORMATS = .*\n", lambda _: f"{functions}_FORMATS = {formats}", source, flags=re.MULTILINE)
    assert changed != source
    (copy / "wire" / "values.py").write_text(changed, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", USE_FORMAT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


USE_STEP = """
import runpy, sys
import torch
from fedpress.compression.models.distillation import teachers
from fedpress.compression.models.step import Materials, Student
from fedpress.compression.models.students import pipeline
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import plan_students
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario

torch.set_num_threads(1)
chosen = scenario.load(sys.argv[1])
workload = Workload(chosen)
publisher = plan_students.publisher(workload, RunFolder.create(sys.argv[2]))
first = publisher.tiers[0].steps[0]
assert (type(first).__name__, first.limit) == ("DropSimilarFilters", 0.9), first
model = workload.fresh_model()
convolution = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
convolution.weight.data[3] = 2 * convolution.weight.data[1]
publisher.check(model)
(published,) = publisher.publish(1, model)
names = ["teacher", "deduplicated", "pruned", "distilled", "quantized"]
assert [stage.name for stage in published.stages] == names, published.stages

sys.path.insert(0, sys.argv[1])
steps = runpy.run_path(sys.argv[1] + "/your_study.py")["steps"]
proxy = workload.task.data().proxy.inputs
materials = Materials(model, workload.task, proxy, None, teachers.of(model), seed=0)
student = steps[0](Student(model), materials)
left = next(layer for layer in student.model.modules() if isinstance(layer, torch.nn.Conv2d)).weight
assert not left[3].any() and torch.equal(left[1], convolution.weight[1]) and convolution.weight[3].any()
assert [type(step).__name__ for step in steps[1:]] == ["PruneToBudget", "Distill", "Quantize"]
"""


@pytest.mark.slow
def test_a_step_for_students_takes_one_file(tmp_path: Path) -> None:
    """The blocks of CONTRIBUTING.md are all that a new step needs: in a scenario by reference, and in a list."""
    python = blocks(ROOT / "CONTRIBUTING.md", "python")
    for name in ("similar_filters.py", "your_study.py"):
        (block,) = [text for text in python if text.startswith(f"# {name}\n")]
        (tmp_path / name).write_text(block, encoding="utf-8")
    (section,) = [text for text in blocks(ROOT / "CONTRIBUTING.md", "yaml") if "similar_filters:" in text]
    short = "task: digits\nclients: 4\nrounds: 1\nsampling: {clients_per_round: 4}\n"
    (tmp_path / "scenario.yaml").write_text(short + section + "  distill: {epochs: 1}\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", USE_STEP, str(tmp_path), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
