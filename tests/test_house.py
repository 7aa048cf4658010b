"""Rules of the house that no linter checks: they are read off the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("compression", "client", "server", "simulations")
NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}
"""Public, for all that their names say."""
OTHERS_INSIDES = {
    # torch
    "compression/models/calibration.py": {"_grouped_mm"},
    "compression/models/cost.py": {"_overloadpacket", "_schema"},
    "compression/models/multihead_attention.py": {"_qkv_same_embed_dim"},
    "compression/models/quantization/quantization_aware.py": {"_parameters", "_modules"},
    "compression/models/students/search.py": {"_overloadpacket"},
    # the standard library's only way to end a process that was forked
    "client/warm/trainer.py": {"_exit"},
    "simulations/deploy/guard.py": {"_exit"},
    "simulations/engines/worker_process.py": {"_exit"},
    # Flower
    "simulations/deploy/_flower.py": {"_insert_message", "_pull_and_store_message"},
    "simulations/engines/_flower_on_ray.py": {"_register_nodes", "_register_node_info_stores", "_future_to_actor"},
}
"""Where an underscored name of something else is used nevertheless, by file."""


def sources() -> list[Path]:
    """Return all modules that a person has written."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in files if "_pb2" not in path.name)


def foreign_underscores(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each underscored attribute whose owner is neither `self`, `cls` nor `super()`.

    >>> list(foreign_underscores("self._mine; other._theirs; super()._base; pair._replace(a=1); a.__doc__"))
    [(1, '_theirs')]
    """
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        owner = node.value
        own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        base = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
        if not own and not base and node.attr not in NAMED_TUPLES:
            yield node.lineno, node.attr


def test_no_class_calls_another_ones_underscored_names() -> None:
    found: dict[str, set[str]] = {}
    for path in sources():
        names = {name for _, name in foreign_underscores(path.read_text(encoding="utf-8"))}
        if names:
            found[path.relative_to(ROOT).as_posix()] = names
    assert found == OTHERS_INSIDES  # also where a name is used no longer: take it off the list


@pytest.mark.parametrize("text", ["a.b._c()", "f()._x", "strategy._ask", "[x][0]._y"])
def test_the_check_sees_an_underscored_name_of_another(text: str) -> None:
    assert len(list(foreign_underscores(text))) == 1


REASONS = {
    "client/_flower.py": "only a name of Flower's, which tests/test_flower_doors.py imports",
    "simulations/__main__.py": "tests/simulations/test_main.py",
    "simulations/benchmarks/_nncodec_process.py": "a script that only an environment with nncodec can run",
    "simulations/benchmarks/_openfl_process.py": "a script that only an environment with OpenFL can run",
    "simulations/benchmarks/_plain_app.py": "an app that test_wire.py and test_warm.py deploy",
    "simulations/deploy/_flower.py": "Flower's insides: tests/test_flower_doors.py, test_service.py, test_admission.py",
    "simulations/deploy/connections.py": "a part of the SuperLink's process, which test_superlink.py strikes",
    "compression/models/pruning/channel_probe.py": "what channel_groups.py tries; test_families.py",
    "compression/models/pruning/channel_removal.py": "a part of channel_groups.py, whose names these are",
    "compression/models/pruning/channel_rules.py": "a part of channel_labels.py; test_channel_labels.py",
    "compression/models/pruning/channel_views.py": "a part of channel_labels.py; test_channel_labels.py",
    "compression/models/pruning/label_sets.py": "a part of channel_labels.py, and its doctest",
    "compression/tensors/side_info.py": "a record without behavior; test_payloads.py and every encoder's test use it",
    "server/checkpoint/settings.py": "a constant; test_checkpoint_folder.py",
    "simulations/tasks/template.py": "what `fedpress init` copies; tests/simulations/scenario/test_template.py runs it",
}
"""Source modules without a test of their name, and why, by path."""


def test_every_module_has_a_test_of_its_name_or_a_reason() -> None:
    modules = [path.relative_to(ROOT) for path in sources() if path.name != "__init__.py"]
    without = {
        str(path) for path in modules if not (ROOT / "tests" / path.with_name(f"test_{path.name.lstrip('_')}")).exists()
    }
    assert without == REASONS.keys()
