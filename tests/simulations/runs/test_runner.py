"""Whole runs: the figures that the folder holds, and that they repeat themselves."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model

from fedpress.compression.errors import FedpressError
from fedpress.compression.ledger import Ledger
from fedpress.compression.models import outputs
from fedpress.compression.models.bundles import onnx_runtime, onnx_weights, reader, writer
from fedpress.compression.models.task import IGNORED, Task, evaluate
from fedpress.compression.wire import payloads
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs import runner
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario
from fedpress.simulations.scenario.scenario import Scenario
from fedpress.simulations.tasks import registry
from fedpress.simulations.tasks.digits import Digits

SHORT = ["rounds=3", "training.epochs=1", "students.tiers=[]"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(out: Path, *overrides: str) -> Results:
    return runner.simulate(scenario.load("digits", [*SHORT, *overrides]), out)


@pytest.mark.long
def test_the_same_seed_gives_the_same_model_with_one_and_two_workers(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "workers=1")
    again = run(tmp_path / "b", "workers=1")
    two = run(tmp_path / "c", "workers=2")
    other = run(tmp_path / "d", "seed=2")
    assert first.model.sha256 == again.model.sha256 == two.model.sha256 != other.model.sha256
    assert first.rounds == two.rounds
    models = [load_file(tmp_path / name / "model.safetensors") for name in "ac"]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["dgc", "eden", "powersgd", "signsgd", "{residual_dtype: float16}", "{feedback: cafe}"]
)
def test_a_recipe_runs_from_end_to_end(tmp_path: Path, recipe: str) -> None:
    server = ["server={optimizer: majority_vote, learning_rate: 0.01}"] if recipe == "signsgd" else []
    results = run(
        tmp_path / "run", "rounds=2", "workers=1", "sampling.clients_per_round=3", f"encoder={recipe}", *server
    )
    assert [one.refused for one in results.rounds] == [0, 0] and results.model.sha256


@pytest.mark.long
def test_a_run_leaves_every_figure_of_the_path_from_gradient_to_download(tmp_path: Path) -> None:
    chosen = scenario.load("digits", ["rounds=4", "students.distill.epochs=2"])
    results = runner.simulate(chosen, tmp_path / "run", keep_payloads=True)
    folder = RunFolder(tmp_path / "run")
    raw: dict[str, Any] = json.loads(folder.results.read_text())
    assert raw.keys() >= {"scenario", "seed", "rounds", "totals", "model", "students", "accuracy", "seconds"}
    keys = {"round", "accuracy", "loss", "up_bytes", "down_bytes", "replies", "refused"}
    assert all(entry.keys() >= keys for entry in raw["rounds"])
    assert [entry["round"] for entry in raw["rounds"]] == [1, 2, 3, 4]
    assert raw["totals"].keys() >= {"up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes"}
    assert results.accuracy == pytest.approx(sum(r["accuracy"] for r in raw["rounds"]) / 4)
    assert results.worker_phases.keys() == {"waiting", "messages", "states", "client", "training"}
    # bytes: the rounds, the ledger and the totals agree; bundles are apart and in all
    ledger = Ledger.load(folder.ledger)
    assert results.totals.up_bytes == ledger.total(direction="up")
    assert results.totals.bundle_bytes == ledger.total(kind="bundle") > sum(s.bundle_bytes for s in results.students)
    assert (
        sum(r.up_bytes for r in results.rounds)
        == ledger.total(direction="up") - ledger.total(direction="up", round=4) + results.rounds[-1].up_bytes
    )
    parameters = results.model.parameters
    assert results.totals.dense_up_bytes > 40 * 4 * parameters
    assert results.totals.up_ratio is not None and results.totals.up_ratio > 100
    # density by layer: together the 1 % that was asked
    assert sum(layer.size for layer in results.layers) == parameters
    assert sum(layer.sent for layer in results.layers) == pytest.approx(0.01 * parameters, rel=0.01)
    # payloads: each that counted, and they are what the density by layer was counted from
    files = sorted(folder.payloads.glob("round-*/node-*.fp"))
    assert Counter(path.parent.name for path in files) == {f"round-{r.round:04}": r.replies for r in results.rounds}
    counts = [payloads.inspect(path.read_bytes())["count"] for path in files]
    assert sum(counts) / len(counts) == pytest.approx(sum(layer.sent for layer in results.layers))
    # students: published, downloaded, the same bytes, within a twentieth of the float32 model
    assert [s.tier for s in results.students] == [tier.name for tier in chosen.students.tiers]
    for student in results.students:
        published = next((folder.bundles / student.tier).glob("*.fpb")).read_bytes()
        (received,) = folder.downloads.glob(f"client-*/{student.tier}-*.fpb")
        assert received.read_bytes() == published
        assert len(published) == student.bundle_bytes <= 4 * parameters / 20
        rebuilt = writer.rebuild(reader.open_bundle(published), Digits())
        assert sum(p.numel() for p in rebuilt.parameters()) == student.parameters
        assert student.accuracy == student.quantized_accuracy


OWN_TASKS = """
import torch
from torch import nn
from fedpress.compression.models.task import Examples, Splits, Task

class Numbers(Task):
    name = "numbers"

    def __init__(self, kind):
        self.kind = kind

    def model(self):
        norm = nn.BatchNorm1d(16, track_running_stats=False) if self.kind == "by-batch" else nn.ReLU()
        last = Dropped() if self.kind == "dropped" else nn.Identity()
        return nn.Sequential(nn.Linear(4, 16), norm, nn.Linear(16, 3), last)

    def data(self):
        inputs = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
        targets = inputs[:, :3].argmax(dim=1)
        if self.kind == "regression":
            targets = targets.float()
        if self.kind == "padded":
            targets[::2] = -100
        sizes = [600, 37, 50, 513]
        return Splits(*map(Examples, inputs.split(sizes), targets.split(sizes)))

    def loss(self, outputs, targets):
        return outputs.square().mean() if self.kind == "regression" else super().loss(outputs, targets)

class Dropped(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x)
"""


def own_run(folder: Path, kind: str, *overrides: str) -> Results:
    (folder / "task.py").write_text(OWN_TASKS)
    (folder / "own.yaml").write_text(
        f"task: {{name: 'task:Numbers', kind: {kind}}}\nclients: 4\nrounds: 2\nworkers: 1\ndensity: 0.2\n"
        "sampling: {clients_per_round: 2}\ntraining: {epochs: 1, batch_size: 20, learning_rate: 0.1}\n"
        "partition: {kind: iid, sizes: equal}\n"
    )
    return runner.simulate(scenario.load(str(folder / "own.yaml"), overrides), folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["by-batch", "padded"])
def test_the_accuracy_of_a_run_is_that_of_one_batch_where_there_are_targets(tmp_path: Path, kind: str) -> None:
    """513 test examples: no whole number of pieces."""
    results = own_run(tmp_path, kind)
    assert results.status == "finished"
    task: Task = registry.create("task:Numbers", {"kind": kind}, tmp_path)
    model = task.model()
    load_model(model, str(tmp_path / "run" / "model.safetensors"))
    inputs, targets = task.data().test
    there = targets != IGNORED
    with torch.no_grad():
        right = (model.eval()(inputs).argmax(dim=1) == targets)[there]
    assert results.rounds[-1].accuracy == pytest.approx(float(right.float().mean()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message", "overrides"),
    [
        ("dropped", r"'3' \(Dropped\) does not answer the same inputs twice alike", []),
        ("regression", "override it to say which answers count as right", []),
        ("by-batch", r"no student.*'1' \(BatchNorm1d\)", ["students={tiers: [{name: phone, parameters: 0.5}]}"]),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_before_the_first_round(
    tmp_path: Path, kind: str, message: str, overrides: list[str]
) -> None:
    with pytest.raises(FedpressError, match=message):
        own_run(tmp_path, kind, *overrides)
    assert RunFolder(tmp_path / "run").load_results().rounds == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(RunFolderError, match="not empty"):
        run(tmp_path)
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.long
@pytest.mark.slow
def test_a_federated_transformer_gives_students_of_half_its_layers_and_of_another_kind(tmp_path):
    tiers = "[{name: phone, parameters: 0.6, layers: 0.5}, {name: watch, parameters: 0.3, student: mlp}]"
    results = run(
        tmp_path / "run",
        "task={name: digits, model: vit}",
        "clients=4",
        "sampling.clients_per_round=2",
        "rounds=1",
        "workers=1",
        f"students={{tiers: {tiers}, distill: {{epochs: 1}}}}",
    )
    assert results.model.parameters == 18_154 and results.status == "finished"
    phone, watch = results.students
    assert phone.parameters <= 0.6 * 18_154 and watch.parameters <= 0.3 * 18_154
    for student in (phone, watch):  # a client has rebuilt what was published
        assert student.accuracy == student.quantized_accuracy
    opened = reader.open_bundle(next((tmp_path / "run").rglob("bundles/phone/*.fpb")).read_bytes())
    assert sorted({name.split(".")[1] for name in opened.manifest.shapes if name.startswith("blocks.")}) == ["0"]


@pytest.mark.long
def test_client_models_teach_the_global_model_and_its_students(tmp_path: Path) -> None:
    few = ["clients=6", "sampling.clients_per_round=3", "workers=1", "rounds=2"]
    tiers = "students.tiers=[{name: phone, parameters: 0.03}]"
    plain = run(tmp_path / "plain", *few, tiers, "students.distill.epochs=2")
    taught = run(tmp_path / "taught", *few, tiers, "students.distill.epochs=2", "students.teachers=clients")
    assert plain.model.sha256 == taught.model.sha256  # students are made from a copy
    assert plain.students[0].sha256 != taught.students[0].sha256
    fused = run(tmp_path / "fused", *few, "fusion={every: 2}")
    assert fused.rounds[0].up_bytes == plain.rounds[0].up_bytes  # the first step is refined after what clients sent
    assert fused.model.sha256 != plain.model.sha256


GIVEN = [
    "students.tiers=[]", "clients=4", "sampling.clients_per_round=4", "rounds=2", "workers=2", "partition.kind=iid",
    "training={learning_rate: 0.01, epochs: 1}",
]  # fmt: skip


def given(kind: str, *overrides: str) -> Scenario:
    """A scenario whose model brings weights of its own."""
    task = f"task={{name: 'tests.apps.given_models:Given', kind: {kind}}}"
    return scenario.load("digits", [task, *GIVEN, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ["encoder=eden"],
        ["encoder=signsgd", "server={optimizer: majority_vote, learning_rate: 0.01}"],
        ["downlink=null"],
    ],
    ids=["eden", "signsgd", "no downlink"],
)
def test_a_frozen_backbone_and_constant_buffers_end_as_they_began(tmp_path: Path, method: list[str]) -> None:
    """Also with encoders whose rounding moves every entry of an update."""
    chosen = given("tagger", *method)
    runner.simulate(chosen, tmp_path / "run")
    before, after = Workload(chosen).fresh_model().state_dict(), load_file(tmp_path / "run" / "model.safetensors")
    frozen = ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "scale", "order"]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in after)
    again = Workload(given("tagger", f"init={tmp_path / 'run' / 'model.safetensors'}"))  # from where the run has ended
    assert all(torch.equal(again.fresh_model().state_dict()[name], tensor) for name, tensor in after.items())


@pytest.mark.long
@pytest.mark.parametrize("downlink", ["{density: 0.2}", "null"])
def test_what_patterns_select_is_trained_sent_and_billed_and_nothing_else(tmp_path: Path, downlink: str) -> None:
    dense = {}
    for name, more in (("part", ["trainable=['head.*']"]), ("whole", [])):
        chosen = given("tagger", f"downlink={downlink}", "rounds=3", "density=1.0", "training.optimizer=adamw", *more)
        results = runner.simulate(chosen, tmp_path / name)
        dense[name] = results.totals.dense_up_bytes
        before, after = Workload(chosen).fresh_model().state_dict(), load_file(tmp_path / name / "model.safetensors")
        moved = {key for key in after if not torch.equal(before[key], after[key])}
        if name == "part":
            assert moved == {"head.weight", "head.bias"}  # and no running statistics of frozen layers
        else:
            assert {"norm.running_mean", "rotation.weight"} < moved
    rows = {name: Ledger.load(RunFolder(tmp_path / name).ledger) for name in dense}
    assert dense["part"] < dense["whole"] / 4
    assert rows["part"].total(direction="up") < rows["whole"].total(direction="up") / 2
    later = {name: rows[name].total(direction="down", round=3) for name in rows}
    assert later["part"] < later["whole"] / 2  # frozen arrays came in round 1 at the latest


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kept_moments_do_not_depend_on_the_number_of_workers_and_change_the_model(
    tmp_path: Path, optimizer: str
) -> None:
    hashes = {}
    for state, workers in (("keep", 1), ("keep", 2), ("reset", 1)):
        chosen = given(
            "fitted",
            "rounds=3",
            f"workers={workers}",
            f"training.optimizer={optimizer}",
            f"training.optimizer_state={state}",
        )
        hashes[state, workers] = runner.simulate(chosen, tmp_path / f"{state}-{workers}").model.sha256
    assert hashes["keep", 1] == hashes["keep", 2] != hashes["reset", 1]


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["{density: 0.01}", "null"])
def test_a_model_that_was_trained_before_begins_as_good_as_it_is(tmp_path: Path, downlink: str) -> None:
    chosen = given("fitted", f"downlink={downlink}", "training.learning_rate=0.00001")
    results = runner.simulate(chosen, tmp_path / "run")
    work = Workload(chosen)
    alone = evaluate(work.fresh_model(), work.task, work.task.data().test).accuracy
    assert alone > 0.85 and results.rounds[0].accuracy == pytest.approx(alone, abs=0.01)


@pytest.mark.slow
def test_where_every_process_draws_other_weights_all_train_those_of_the_server(tmp_path: Path) -> None:
    """Each of the workers has another version 0: it asks for the model once, which is billed, and the log says it."""
    results = runner.simulate(given("elsewhere"), tmp_path / "run")
    whole = sum(tensor.nbytes for tensor in load_file(tmp_path / "run" / "model.safetensors").values())
    first, second = results.rounds
    assert first.refused == second.refused == 0
    assert 4 * whole < first.down_bytes < 5 * whole and second.down_bytes < whole
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("has other initial weights than the server, or none") == 1
    assert log.count("has other initial weights than the server, too") == 3


TEXTS = [
    "clients=4", "sampling.clients_per_round=4", "rounds=3", "workers=1", "partition.kind=iid", "density=0.2",
    "training={learning_rate: 0.1, batch_size: 16}", "encoder={values: float32}", "evaluation.split=validation",
    "students={tiers: [{name: phone, parameters: 0.7}], distill: {epochs: 2}, quantize: {onnx: true}}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "source"),
    [("plain", "lines"), ("places", "lists"), pytest.param("bert", "lists", marks=pytest.mark.long)],
)
def test_a_model_of_several_inputs_that_a_collator_pads(tmp_path: Path, kind: str, source: str) -> None:
    """From the partition to a student in ONNX Runtime, which answers texts of any length."""
    pytest.importorskip("onnxruntime", reason="the extra onnx")
    if kind == "bert":
        pytest.importorskip("transformers", reason="the extra text-models")
    chosen = scenario.load(
        "digits", [f"task={{name: 'tests.apps.texts:Texts', kind: {kind}, source: {source}}}", *TEXTS]
    )
    results = runner.simulate(chosen, tmp_path / "run")
    assert [(one.replies, one.refused) for one in results.rounds] == [(4, 0)] * 3
    accuracies = [one.accuracy for one in results.rounds]
    assert accuracies[-1] is not None
    assert kind == "bert" or accuracies[-1] > 0.4  # of three classes; a transformer would take more rounds
    (student,) = results.students
    accuracy = {stage.name: stage.accuracy for stage in student.stages}
    assert abs(accuracy["onnx"] - accuracy["quantized"]) < 0.1
    opened = reader.open_bundle(next((tmp_path / "run").rglob("*.fpb")).read_bytes())
    forms = opened.manifest.inputs
    assert forms is not None and {form.shape for form in forms.values()} == {(None,)}
    assert opened.manifest.output_shape == ((3, None) if kind == "places" else (3,))
    part = Workload(chosen).task.data().test
    run_graph = onnx_runtime.runner(onnx_weights.filled(opened.onnx or b"", opened.weights))
    rebuilt = writer.rebuild(opened, Workload(chosen).task)
    for rows in ([0], [1, 2, 3, 4]):
        batch = part.inputs.take(torch.tensor(rows))
        answers = run_graph({name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            expected = outputs.answers(rebuilt(**batch))
        assert answers.shape == expected.shape
