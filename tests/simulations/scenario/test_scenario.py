"""Scenarios: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.simulations.scenario.problems import problems

from fedpress.compression import settings
from fedpress.compression.errors import FedpressError
from fedpress.compression.wire import values
from fedpress.simulations.scenario import scenario, yaml_source
from fedpress.simulations.scenario.scenario import Scenario, ScenarioError, load


@pytest.mark.parametrize("name", scenario.names())
def test_shipped_scenarios_are_valid_and_carry_their_own_name(name):
    loaded = load(name)
    assert loaded.name == name
    assert loaded.students.tiers or name == "minilm-verses"  # of which students are a study of their own


def test_the_default_scenario_is_the_one_promised():
    digits = load("digits")
    assert (digits.task.name, digits.clients, digits.density) == ("digits", 20, 0.01)
    assert (digits.partition.kind, digits.partition.alpha) == ("dirichlet", 0.5)


def test_fashion_mnist_100_is_the_one_promised():
    chosen = load("fashion-mnist-100")
    assert (chosen.clients, chosen.rounds, chosen.density, chosen.sampling.clients_per_round) == (100, 60, 0.0125, 10)
    assert (chosen.partition.kind, chosen.partition.alpha, chosen.partition.sizes) == ("dirichlet", 0.3, "equal")
    training = chosen.training
    assert (training.epochs, training.batch_size, training.rate, training.velocity_decay) == (1, 50, 0.1, 0)
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
        ("clients=null", "clients: got null, expected a whole number"),
        ("encoder.kind=topk", "got 'topk', expected top_k, random_k, dense; did you mean 'top_k'?"),
        ("encoder.values=ternery", "did you mean 'ternary'? (value given: 'ternery')"),
        (
            "task=digts",
            "task.name: expected digits, fashion-mnist, text, verses or a class of your own as 'module:Class'",
        ),
        ("roundz=3", "roundz: unknown key (value given: 3); did you mean 'rounds'?"),
        ("trainig.epochs=2", "trainig: unknown key (value given: {'epochs': 2}); did you mean 'training'?"),
        ("encoder.density=0.1", "encoder.density: unknown key (value given: 0.1); 'density' is a key of the top level"),
        ("batch_size=3", "'batch_size' is written training.batch_size"),
        ("color=red", "a scenario has the keys name, task, init, base, clients, rounds"),
        ("partition={kind: natural, sizes: equal}", "sizes: equal does not go with kind natural, whose groups keep"),
        ("partition=iid", "partition: got 'iid', expected a section with the keys kind, alpha"),
        ("training.steps=3", "epochs and steps: give one and set the other to null"),
        ("training.warmup_rounds=100", "training.warmup_rounds: 100 of 100 rounds, expected fewer"),
        ("training.beta2=0.95", "beta1, beta2 and epsilon: belong to adamw"),
        ("trainable=[]", "trainable: got []"),
        ("server.momentum=1", "server.momentum: got 1, expected 0 <= momentum < 1"),
        ("server.beta1=0.5", "server: beta1 has no meaning for optimizer sgd"),
        ("server.epsilon=1e-8", "server.epsilon: got 1e-08, expected 0.001 <= epsilon"),
        ("students.tiers=5", "students.tiers: got 5, expected a list"),
        ("students.tiers.0.parameters=3", "students.tiers.0: give one budget out of parameters, bundle_bytes, flops"),
        ("students.tiers=[{name: a, parameters: 1.5}]", "expected a whole number >= 1, or a fraction of the global"),
        ("students.tiers=[{name: a, parameters: 3}, {name: a, parameters: 4}]", "two tiers have the same name"),
        (
            "students.tiers=[{name: a, parameters: 3, layers: 0}]",
            "students.tiers.0.layers: expected a number of blocks",
        ),
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
        ("students=transformr", "students.recipe: got 'transformr', expected small, accurate, auto, transformer"),
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


def test_unknown_scenario_names_the_nearest():
    assert problems(base="digit").endswith(
        "digits, fashion-mnist-100, minilm-verses, text-books; did you mean 'digits'?"
    )


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


@pytest.mark.parametrize(
    ("name", "key", "chosen"),
    [("students=small", "students.quantize.bits=3", "recipe"), ("encoder=stc", "encoder.feedback=none", "recipe"),
     ("network=lte", "network.packet_loss=0.2", "profile"), ("sparsity=erk", "sparsity.every=4", "method")],
)  # fmt: skip
def test_a_section_by_its_name_alone_takes_keys_beside_it(name: str, key: str, chosen: str) -> None:
    raw: dict[str, object] = {}
    yaml_source.override(raw, name)
    yaml_source.override(raw, key)
    (section, value), (_, inner) = name.split("="), key.split("=")[0].split(".", 1)
    assert raw[section][chosen] == value and inner.split(".")[0] in raw[section]
