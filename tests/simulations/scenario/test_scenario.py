"""Scenarios: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import settings
from fedpress.compression.encoders import recipes
from fedpress.compression.errors import FedpressError
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import values
from fedpress.simulations.scenario import encoder, renamed, scenario, students, yaml_source
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError, load


def problems(*overrides: str, base: str = "digits") -> str:
    """The error's lines without the first."""
    with pytest.raises(ScenarioError) as caught:
        load(base, overrides)
    return str(caught.value).partition("\n")[2] or str(caught.value)


@pytest.mark.parametrize("name", scenario.names())
def test_shipped_scenarios_are_valid_and_carry_their_own_name(name):
    loaded = load(name)
    assert loaded.name == name
    assert loaded.students.tiers


def test_the_default_scenario_is_the_one_promised():
    digits = load("digits")
    assert (digits.task.name, digits.clients, digits.density) == ("digits", 20, 0.01)
    assert (digits.partition.kind, digits.partition.alpha) == ("dirichlet", 0.5)


def test_fashion_mnist_100_is_the_one_promised():
    chosen = load("fashion-mnist-100")
    assert (chosen.clients, chosen.rounds, chosen.density, chosen.sampling.clients_per_round) == (100, 60, 0.0125, 10)
    assert (chosen.partition.kind, chosen.partition.alpha, chosen.partition.sizes) == ("dirichlet", 0.3, "equal")
    training = chosen.training
    assert (training.epochs, training.batch_size, training.learning_rate, training.momentum) == (1, 50, 0.1, 0)
    assert chosen.encoder.feedback == "step_ahead"


@given(
    rounds=st.integers(1, 10_000),
    density=st.floats(1e-6, 1),
    alpha=st.floats(1e-3, 1e3),
    kind=st.sampled_from(["iid", "dirichlet", "labels", "natural"]),
    number_format=st.sampled_from(values.names()),
    deadline=st.none() | st.floats(0.1, 1e4),
    parameters=st.integers(1, 10**9) | st.floats(1e-6, 0.999),
)
def test_json_and_yaml_give_the_scenario_back(rounds, density, alpha, kind, number_format, deadline, parameters):
    original = Scenario.model_validate(
        {
            "task": "digits",
            "clients": 20,
            "rounds": rounds,
            "density": density,
            "partition": {"kind": kind, "alpha": alpha},
            "encoder": {"values": number_format},
            "sampling": {"deadline": deadline},
            "network": {},
            "students": {"tiers": [{"name": "phone", "parameters": parameters}]},
        }
    )
    assert Scenario.from_json(original.to_json()) == original
    assert Scenario.model_validate(yaml_source.read(original.to_yaml())) == original


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("density=0", "density: got 0, expected 0 < density <= 1"),
        ("density=2", "density: got 2, expected 0 < density <= 1"),
        ("density=.nan", "density: got nan, expected a finite number"),
        ("rounds=three", "rounds: got 'three', expected a whole number"),
        ("rounds=2.5", "rounds: got 2.5, expected a whole number"),
        ("rounds=true", "rounds: got True, expected a whole number"),
        ("clients=", "clients: got null, expected a whole number"),
        ("encoder.kind=topk", "got 'topk', expected top_k, random_k, dense; did you mean 'top_k'?"),
        ("encoder.values=ternery", "did you mean 'ternary'? (value given: 'ternery')"),
        ("task=digts", "task.name: expected digits, fashion-mnist, text or a class of your own as 'module:Class'; did"),
        ("roundz=3", "roundz: unknown key (value given: 3); did you mean 'rounds'?"),
        ("trainig.epochs=2", "trainig: unknown key (value given: {'epochs': 2}); did you mean 'training'?"),
        ("encoder.density=0.1", "encoder.density: unknown key (value given: 0.1); 'density' is a key of the top level"),
        ("batch_size=3", "'batch_size' is written training.batch_size"),
        ("color=red", "a scenario has the keys name, task, clients, rounds"),
        ("partition={kind: natural, sizes: equal}", "sizes: equal does not go with kind natural, whose groups keep"),
        ("partition=iid", "partition: got 'iid', expected a section with the keys kind, alpha"),
        ("training.steps=3", "epochs and steps: give one and set the other to null"),
        ("server.momentum=1", "server.momentum: got 1, expected 0 <= momentum < 1"),
        ("server.beta1=0.5", "server: beta1 has no meaning for optimizer sgd"),
        ("server.epsilon=1e-8", "server.epsilon: got 1e-08, expected 0.001 <= epsilon"),
        ("students.tiers=5", "students.tiers: got 5, expected a list"),
        ("students.tiers.0.parameters=3", "students.tiers.0: give one budget out of parameters, bundle_bytes, flops"),
        ("students.tiers=[{name: a, parameters: 1.5}]", "expected a whole number >= 1, or a fraction of the global"),
        ("students.tiers=[{name: a, parameters: 3}, {name: a, parameters: 4}]", "two tiers have the same name"),
        ("students.tiers=[{name: a, parameters: 3, keep_every: 0}]", "students.tiers.0.keep_every: got 0"),
        (
            "students.data={data_free: dall-e}",
            "students.data.data_free: recipe: got 'dall-e', expected deep-inversion, dafl",
        ),
        ("students.data={data_free: {recipe: dafl, low: 2.0}}", "low must be below high, got 2.0 and 1.0"),
        ("students.data={data_free: dafl, labels: true}", "have no labels and are no sequences"),
        (
            "students.data={continuations: {temperature: 0.0, copies: 2}}",
            "copies: got 2, but at temperature 0 all are",
        ),
        ("students.tiers=[{name: a/b, parameters: 3}]", "students.tiers.0.name: got 'a/b', expected letters"),
        ("sampling.clients_per_round=21", "21 clients asked each round, but clients is 20"),
        ("sampling.min_replies=11", "sampling.min_replies: got 11, expected at most clients_per_round, 10"),
        ("sampling.deadline=3", "sampling.deadline: needs `network`"),
        ("sampling.over_selection=3", "sampling.over_selection: needs `network`"),
        ("sampling.schedule=buffered", "sampling.schedule: buffered needs `network`"),
        ("sampling.schedule=buffered", "sampling.concurrency: missing; for buffered"),
        ("sampling={schedule: buffered, concurrency: 21}", "sampling.concurrency: 21 clients asked each round"),
        ("sampling={schedule: buffered, over_selection: 2}", "sampling.over_selection: has no meaning for a buffered"),
        ("sampling.max_staleness=3", "sampling.max_staleness: needs `sampling.schedule: buffered`"),
        ("network.dropout=0.1", "network.dropout: needs `sampling.deadline`"),
        ("network=lt", "network.profile: there is no profile 'lt', expected wifi, fibre, lte, 3g, lora-like; did you"),
        ("network={profile: {lte: 0.5, wifi: 0.4}}", "network.profile: the shares sum to 0.9, expected 1"),
        ("network={profile: {wifl: 1}}", "network.profile: there is no profile 'wifl', expected wifi, fibre"),
        ("network={profile: {lte: 2, wifi: -1}}", "network.profile: the share of wifi is -1, expected a positive"),
        ("network={profile: 3}", "network.profile: expected the name of a profile, or shares by name"),
        ("network={profile: {}}", "network.profile: expected the name of a profile, or shares by name"),
        ("network={packet_loss: 1}", "network.packet_loss: got 1, expected 0 <= packet_loss < 1"),
        ("network={up_mbit: 0}", "network.up_mbit: got 0, expected 0 < up_mbit"),
        ("network={trace: a.csv, up_mbit: 1}", "network: up_mbit has no meaning beside trace, which has the rates"),
        ("encoder.warm_up_rounds=900", "encoder.warm_up_rounds: got 900, expected less than rounds"),
        ("encoder={warm_up_rounds: 2, warm_up_density: 0.001}", "expected at least density, 0.01"),
        ("encoder=qsdg", "encoder.recipe: expected fedpress, stc, random_k, fp16, int8, dgc, qsgd, terngrad"),
        ("encoder=qsdg", "did you mean 'qsgd'? (value given: 'qsdg')"),
        ("encoder={recipe: qsgd, bits: 9}", "encoder: bits is 9, expected 2 to 8"),
        ("encoder={recipe: powersgd, rank: 0}", "encoder: rank is 0, expected 1 to 255"),
        ("encoder={recipe: dgc, bits: 4}", "encoder: bits is for the recipes qsgd, eden; recipe is dgc"),
        ("encoder={rank: 4}", "encoder: rank is for the recipes powersgd; recipe is null"),
        ("encoder={recipe: dgc, values: int8}", "encoder: values has no meaning beside recipe dgc"),
        (
            "encoder={feedback: none, residual_dtype: float16}",
            "residual_dtype float16 has no meaning with feedback none",
        ),
        (
            "encoder={feedback: cafe, residual_dtype: float16}",
            "residual_dtype float16 has no meaning with feedback cafe",
        ),
        ("encoder={recipe: dgc, residual_dtype: float16}", "encoder: residual_dtype has no meaning beside recipe dgc"),
        ("encoder={recipe: eden, warm_up_rounds: 3}", "warm_up_rounds has no meaning for recipe eden"),
        ("encoder=signsgd", "server.optimizer: got 'sgd' with encoder.recipe 'signsgd'; signsgd and majority_vote go"),
        ("server={optimizer: majority_vote, learning_rate: 0.01}", "with encoder.recipe None; signsgd and majority"),
        ("server={optimizer: majority_vote, momentum: 0.9}", "momentum has no meaning for optimizer majority_vote"),
        ("sparsity=snap", "sparsity.method: got 'snap', expected snip, grasp"),
        ("sparsity={method: snip, density: 0.0}", "sparsity.density: got 0.0, expected 0 < density <= 1"),
        ("sparsity={method: snip, every: 3}", "sparsity: every has no meaning for method snip"),
        ("sparsity={method: rigl, begin: 3}", "sparsity: begin has no meaning for method rigl"),
        ("sparsity={method: erk, scope: global}", "scope global has no meaning for method erk"),
        (
            "sparsity={method: feddst, end: 101}",
            "sparsity.end: got 101 with begin 0, expected begin < end <= rounds, 100",
        ),
        ("sparsity={method: gradual, begin: 70}", "sparsity.end: got 66 with begin 70"),
        ("name=a/b", "name: got 'a/b', expected letters"),
        ("rounds.x=3", "rounds is the value"),
        ("students.tiers.7.name=x", "students.tiers is a list of 2; expected an index from 0, got '7'"),
        ("rounds", "expected key=value"),
        ("rounds=[1", "override 'rounds=[1': not YAML"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override, expected):
    assert expected in problems(override)


TRAINS = "students.tiers=[{name: phone, parameters: 0.1, trains: true}, {name: sensor, parameters: 800, trains: true}]"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teaching=null", "students.tiers: phone trains, but there is no `teaching`, which says who trains the global"),
        (
            "students.tiers=[{name: a, parameters: 0.1, density: 0.1}]",
            "students.tiers.0: density is for tiers that train: add trains: true",
        ),
        ("students.tiers=[]", "teaching: no tier trains; say so where the tier is"),
        ("clients=2", "students.tiers: no client is of tier sensor; 3 models are trained, and clients is 2"),
        (
            "sampling.clients_per_round=2",
            "sampling.clients_per_round: got 2, expected at least 3, a client",
        ),
        ("sampling.min_replies=4", "sampling.min_replies: got 4, expected at most 3, the clients that a tier has"),
        ("sampling={schedule: buffered, concurrency: 12}", "sampling.schedule: buffered has no tiers that train"),
        ("encoder={feedback: cafe}", "encoder.feedback: cafe predicts from steps that clients have made, and teaching"),
        ("teaching.every=101", "teaching.every: got 101, expected at most rounds, 100; 0: never"),
        ("teaching.combine=vote", "teaching.combine: got 'vote', expected logits, probabilities, entropy, confidence"),
        ("teaching={method: heterofl, every: 7}", "teaching.every: has no meaning with method heterofl"),
        (
            "students.tiers=[{name: a, parameters: 9000, trains: true, student: auto}]",
            "students.tiers.0: trains: a tier's clients train one architecture, whole in depth",
        ),
        ("teaching={method: heterofl, global_model: distilled}", "distilled has no meaning with method heterofl"),
    ],
)
def test_what_does_not_go_with_tiers_that_train_is_named(override, expected):
    assert expected in problems(TRAINS, "teaching={every: 5}", "network={}", override)


def test_clients_belong_to_the_models_in_turn():
    trained = load("digits", [TRAINS, "teaching={every: 5}"])
    assert [group and group.name for group in trained.groups] == [None, "phone", "sensor"]
    assert (trained.shares(10), trained.shares(20), trained.shares(2)) == ([4, 3, 3], [7, 7, 6], [1, 1, 0])
    distilled = load("digits", [TRAINS, "teaching={global_model: distilled}"])
    assert [group and group.name for group in distilled.groups] == ["phone", "sensor"]
    assert load("digits").groups == (None,) and load("digits").shares(10) == [10]


def test_what_masks_do_not_go_with_is_refused():
    buffered = ["network={}", "sampling={schedule: buffered, clients_per_round: 5, concurrency: 8}"]
    with pytest.raises(ScenarioError, match="feddst merges the votes of a round, which a buffered schedule has not"):
        load("digits", ["sparsity=feddst", *buffered])
    with pytest.raises(ScenarioError, match="'powersgd', whose factors need whole matrices"):
        load("digits", ["sparsity=snip", "encoder=powersgd"])
    assert load("digits", ["sparsity=snip", *buffered]).sparsity.initial.density == 0.1
    assert load("digits", ["sparsity={method: gradual, end: 50}", *buffered]).mask_end == 50


@pytest.mark.parametrize("without", ["downlink=null", "server={optimizer: adam}"])
def test_cafe_needs_what_it_predicts_from(without):
    with pytest.raises(ScenarioError, match="encoder.feedback: cafe predicts from what goes down, in steps of sgd"):
        load("digits", ["encoder={feedback: cafe}", without])


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_scenario_can_name_a_recipe(recipe):
    server = ["server={optimizer: majority_vote, learning_rate: 0.01}"] if recipe == "signsgd" else []
    chosen = load("digits", [f"encoder={recipe}", *server])
    assert chosen.encoder.recipe == (recipe if recipe in encoder.RECIPES else None)
    assert chosen == load("digits", [f"encoder={{recipe: {recipe}}}", *server])
    assert Scenario.from_json(chosen.to_json()) == chosen
    assert Scenario.model_validate(yaml_source.read(chosen.to_yaml())) == chosen


@pytest.mark.parametrize(("old", "new"), renamed.RENAMED.items())
def test_an_old_key_is_answered_with_its_new_name(old, new):
    place = old.replace("tiers.", "tiers.0.")  # of a list, the first
    assert f"{place}: renamed to {new} (value given: 1)" in problems(f"{place}=1")
    *above, key = new.split(".")
    section: type = Scenario
    for part in above:
        section = next(settings.sections(settings.fields(section)[part].annotation))
    assert key in settings.fields(section)


def test_a_name_of_parts_is_these_parts_which_others_may_change():
    assert load("digits", ["encoder=stc"]) == load("digits", ["encoder={values: ternary, feedback: residual}"])
    changed = load("digits", ["encoder=random_k", "encoder.values=int8"]).encoder
    assert (changed.recipe, changed.kind, changed.values, changed.feedback) == (None, "random_k", "int8", "residual")


@pytest.mark.parametrize("name", encoder.NAMES_OF_PARTS)
def test_parts_send_what_the_recipe_of_the_library_sends(name):
    layout, recipe = Layout((TensorSpec("weight", (40, 5), "float32"),)), recipes.RECIPES[name]
    update = np.random.default_rng(1).standard_normal(layout.size).astype(np.float32)
    by_parts = encoder.EncoderSettings.model_validate({"recipe": name}).build(0.1)
    by_recipe = recipe.make(**{"density": 0.1} if recipe.takes else {})
    payloads = [
        built.encode(update.copy(), built.init(layout), SideInfo(layout), 7)[0] for built in (by_parts, by_recipe)
    ]
    assert payloads[0] == payloads[1]


def test_all_problems_are_listed_at_once():
    told = problems("rounds=0", "density=2", "encoder.kind=topk")
    assert [line.split(":")[0].strip() for line in told.splitlines()] == ["rounds", "density", "encoder.kind"]


def test_missing_keys_are_named_with_their_meaning(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("task: digits\n")
    told = problems(base=str(path))
    assert "clients: missing (How many clients share the training data.)" in told
    assert "rounds: missing" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rounds: [1,\n", "not YAML: line 2"),
        ("- a\n- b\n", "expected `key: value` lines"),
        ("", "expected `key: value` lines, found nothing"),
        ("task: digits\nrounds: 1\nrounds: 2\n", "rounds: given twice, the second time in line 3"),
        ("task: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_scenario(tmp_path, text, expected):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert expected in problems(base=str(path))


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "broken.yaml" in problems(base=str(path))


def test_unknown_scenario_names_the_nearest():
    assert problems(base="digit").endswith("digits, fashion-mnist-100, text-books; did you mean 'digits'?")


def test_a_run_folder_can_be_run_again(tmp_path):
    original = load("digits", ["seed=7"])
    (tmp_path / "scenario.yaml").write_text(original.to_yaml())
    assert load(tmp_path) == original


def test_a_file_without_a_name_is_called_after_the_file(tmp_path):
    text = "task: digits\nclients: 20\nrounds: 1\n"
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "scenario.yaml").write_text(text)
    assert load(tmp_path / "mine.yaml").name == "mine"
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "scenario.yaml").write_text(text)
    assert load(tmp_path / "study").name == "study"


def test_overrides_apply_in_order_and_reach_options_and_absent_sections():
    changed = load(
        "digits",
        ["rounds=3", "rounds=4", "task=fashion-mnist", "task.data_dir=/data", "network.up_mbit=2", "seed=1"],
    )
    assert changed.rounds == 4
    assert (changed.task.name, changed.task.options) == ("fashion-mnist", {"data_dir": "/data"})
    assert changed.network is not None and changed.network.up_mbit == 2.0
    assert load("digits", ["network.up_mbit=2", "network=null"]).network is None
    named = load("digits", ["encoder=qsgd", "encoder.bits=2"]).encoder  # a section that was written as a name
    assert (named.recipe, named.bits) == ("qsgd", 2)


def test_numbers_without_a_dot_are_numbers():
    assert load("digits", ["training.learning_rate=1e-2"]).training.learning_rate == 0.01


def test_steps_replace_epochs():
    training = load("digits", ["training.epochs=null", "training.steps=7"]).training
    assert (training.epochs, training.steps) == (None, 7)
    assert Scenario(task={"name": "digits"}, clients=10, rounds=1).training.epochs == 1


def test_a_scenario_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValueError, match="frozen"):
        load("digits").rounds = 0  # type: ignore[misc]


def test_workers_default_to_the_cores_and_never_exceed_a_round(monkeypatch):
    monkeypatch.setattr(scenario.os, "sched_getaffinity", lambda _: set(range(64)))
    assert load("digits").worker_count == 10
    assert load("digits", ["workers=2"]).worker_count == 2


def test_errors_are_fedpress_errors_and_value_errors():
    with pytest.raises(FedpressError):
        load("nothing")
    with pytest.raises(ValueError):
        Scenario.from_json("{")


def test_a_class_of_ones_own_is_looked_for_beside_its_scenario(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine:Task\nclients: 10\nrounds: 1\n")
    assert load(path).task.folder == str(tmp_path.resolve())
    # Saved into a run folder and read again, it still points to where the class is.
    copy = tmp_path / "run" / "scenario.yaml"
    copy.parent.mkdir()
    copy.write_text(load(path).to_yaml())
    assert load(copy).task.folder == str(tmp_path.resolve())


def test_a_network_may_be_a_name_a_mixture_or_a_name_with_what_differs(tmp_path):
    named = load("digits", ["network=lte"])
    assert named.network == load("digits", ["network={profile: lte}"]).network
    differs = load("digits", ["network=lte", "network.rate_sigma=0.3", "network.up_mbit=2"])
    assert (differs.network.profile, differs.network.rate_sigma, differs.network.up_mbit) == ("lte", 0.3, 2.0)
    mixed = load("digits", ["network={profile: {lte: 0.7, wifi: 0.3}, packet_loss: 0}"])
    assert mixed.network.profile == {"lte": 0.7, "wifi": 0.3}
    for chosen in (named, differs, mixed):
        assert Scenario.from_json(chosen.to_json()) == chosen
        (tmp_path / "scenario.yaml").write_text(chosen.to_yaml())
        assert load(tmp_path) == chosen
        # a run's own scenario takes another profile
        assert load(tmp_path, ["network.profile=wifi"]).network.profile == "wifi"


def test_a_trace_is_looked_for_beside_its_scenario(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "mine.yaml"
    path.write_text("task: digits\nclients: 10\nrounds: 1\nnetwork: {trace: ../rates.csv}\n")
    assert load(path).network.trace == str(tmp_path / "rates.csv")
    copy = tmp_path / "run" / "scenario.yaml"
    copy.parent.mkdir()
    copy.write_text(load(path).to_yaml())
    assert load(copy).network.trace == str(tmp_path / "rates.csv")
    # a scenario that comes with fedpress has nothing beside it: from where the command is given
    monkeypatch.chdir(tmp_path)
    assert load("digits", ["network.trace=rates.csv"]).network.trace == str(tmp_path / "rates.csv")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(path, ["network.trace=~/rates.csv"]).network.trace == str(tmp_path / "home" / "rates.csv")


def test_every_key_is_described():
    def undescribed(model, path=""):
        for key, field in settings.fields(model).items():
            if not field.description:
                yield path + key
            for section in settings.sections(field.annotation):
                yield from undescribed(section, f"{path}{key}.")

    assert list(undescribed(Scenario)) == []


def test_scenario_files_explain_themselves():
    for name in scenario.names():
        text = (scenario.FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("#")
        assert set(yaml.safe_load(text)) <= set(Scenario.model_fields)


def test_reading_scenarios_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from fedpress.simulations.scenario import scenario; scenario.load('digits');"
        "print([m for m in ('torch', 'flwr', 'sklearn', 'pandas', 'flwr_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folder_of_scenarios_is_packaged():
    assert Path(scenario.FOLDER, "digits.yaml").is_file()


@pytest.mark.parametrize("recipe", students.RECIPES)
def test_a_recipe_of_students_is_completed_by_the_keys_beside_it(recipe: str) -> None:
    chosen = load("fashion-mnist-100", [f"students={recipe}"]).students
    assert chosen.recipe == recipe and len(chosen.tiers) == 1
    more = load("fashion-mnist-100", [f"students={{recipe: {recipe}, distill: {{epochs: 3}}}}"]).students
    assert more.distill.epochs == 3 and (more.quantize, more.tiers) == (chosen.quantize, chosen.tiers)
    again = Scenario.from_json(load("digits", [f"students={recipe}"]).to_json()).students
    assert again.tiers == chosen.tiers


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            "[prune, distil, quantize]",
            "students.steps.1: expected prune, distill, quantize; did you mean 'distill'?",
        ),
        ("[prune, distill]", "students.steps: expected quantize once"),
        (
            "[{step: prune, ranking: global}, quantize]",
            "students.steps.0: step: Value error, got 'prune', expected",
        ),
    ],
)
def test_steps_that_are_none_are_named(steps: str, expected: str) -> None:
    assert expected in problems(f"students.steps={steps}")


AUTO = "students.tiers=[{name: phone, removed_fraction: auto}]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["students.epochs=3"], "students.epochs: unknown key"),
        (["students.prune={ranking: erk}"], "ranking 'erk' gives densities of single weights"),
        (
            ["students.quantize={rounding: adaround, qat_epochs: 2}"],
            "aware training chooses what each weight is rounded to",
        ),
        (["students.quantize={bits: 1}"], "students.quantize.bits"),
        (
            ["students.distill={weights: {teacher: 0, labels: 0}}"],
            "weights must be at least 0, and one of them above it",
        ),
        ([AUTO], "prune: tolerance: missing; removed_fraction auto is the largest that costs"),
        (
            ["students.tiers=[{name: phone, removed_fraction: 1.5}]"],
            "expected a part of the parameters, 0 < removed_fraction < 1, or auto",
        ),
        (
            ["students.tiers=[{name: phone, removed_fraction: 0.5, student: mlp}]"],
            "removed_fraction is for the pruned global model alone",
        ),
        (["students.tiers=[{name: phone, removed_fraction: 0.5, parameters: 0.5}]"], "give one budget out of"),
        (["students={quantize: {onnx: true}, tiers: [{name: phone, bundle_bytes: 9000}]}"], "no tier may have"),
        (
            ["students={prune: {penalty: l1}, tiers: [{name: phone, parameters: 0.5}]}"],
            "is for tiers with a removed_fraction",
        ),
    ],
)
def test_what_makes_no_student_is_named(overrides: list[str], expected: str) -> None:
    assert expected in problems(*overrides)


def test_a_student_is_made_as_the_scenario_says() -> None:
    chosen = load(
        "digits",
        [AUTO, "students.prune={granularity: weights, ranking: erk, schedule: cubic, steps: 3, tolerance: 0.01}",
         "students.quantize={bits: 4, group_size: 32}", "students.distill={weights: {features: 0.1}}"],
    ).students  # fmt: skip
    assert chosen.prune.schedule == "cubic" and chosen.tiers[0].removed_fraction == "auto"
    assert (chosen.quantize.group_size, chosen.distill.weights.features) == (32, 0.1)


@pytest.mark.parametrize("budget", ["parameters: 0.1", "bundle_bytes: 9000", "flops: 100000", "memory_bytes: 50000"])
def test_a_tier_has_one_of_the_budgets(budget):
    tier = load("digits", [f"students.tiers=[{{name: phone, {budget}, student: auto}}]"]).students.tiers[0]
    key, value = budget.split(": ")
    assert tier.student == "auto" and getattr(tier, key) == float(value)


def test_milliseconds_take_the_rates_from_the_file_of_a_probe(tmp_path):
    rates = {"call_ms": 0.1, "convolution_call_ms": 0.2, "convolution_ms": 0.3, "matrix_ms": 0.4, "moved_ms": 0.5}
    path = tmp_path / "phone.json"
    path.write_text(json.dumps({"speed": rates, "cores": 2}))
    loaded = load("digits", [f"students.tiers=[{{name: phone, latency_ms: 0.5, device: {path}}}]"])
    path.unlink()  # a run does not depend on the file any more
    assert asdict(loaded.students.tiers[0].device) == rates
    assert Scenario.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize(
    ("tier", "text"),
    [
        (
            "{name: phone}",
            "parameters, bundle_bytes, flops, memory_bytes, latency_ms, removed_fraction; got none",
        ),
        ("{name: phone, flops: 5, bundle_bytes: 5}", "got bundle_bytes and flops"),
        ("{name: phone, latency_ms: 0.5}", "latency_ms and device go together; `fedpress probe --json FILE`"),
        ("{name: phone, latency_ms: 0.5, device: nowhere.json}", "expected a file that `fedpress probe --json FILE`"),
        ("{name: phone, flops: 5, student: auto, keep_every: 2}", "keep_every has no meaning with student auto"),
    ],
)
def test_a_tier_that_makes_no_sense_is_explained(tier, text):
    assert text in problems(f"students.tiers=[{tier}]")


def test_a_search_has_no_more_finalists_than_candidates():
    given = "students.search={candidates: 8, finalists: 9}"
    assert "finalists: got 9, expected at most candidates, 8" in problems(given)
