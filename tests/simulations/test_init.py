"""`fedpress init`: every key is there, explained, and the files are valid as they are."""

from __future__ import annotations

import pytest

from fedpress.simulations import init, scenario, scenario_yaml
from fedpress.simulations.scenario import Scenario


def test_the_commented_scenario_reads_back_as_the_example(tmp_path):
    init.write(tmp_path / "study")
    loaded = scenario.load(tmp_path / "study")
    task = init.EXAMPLE.task.model_copy(update={"folder": str(tmp_path / "study")})
    assert loaded == init.EXAMPLE.model_copy(update={"task": task})


def test_every_key_is_written_below_a_comment():
    lines = init.commented(init.EXAMPLE).splitlines()

    def check(model, indent: str) -> None:
        for key, field in model.model_fields.items():
            if key == "folder" or key == "tiers":
                continue
            number = next(i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{indent}{key}:"))
            assert lines[number - 1].lstrip().startswith("#"), key
            if isinstance(field.annotation, type) and issubclass(field.annotation, scenario.Section):
                check(field.annotation, indent + "  ")

    check(Scenario, "")


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        ("network", scenario.NetworkChoice()),
        ("faults", scenario.FaultChoice()),
        ("teaching", scenario.Teaching(every=3)),
        ("sparsity", scenario.Sparsity()),
    ],
)
def test_what_is_commented_out_is_valid_too(key, chosen):
    head, _, tail = init.commented(init.EXAMPLE).partition(f"{key}: null\n")
    section, _, rest = tail.partition("\n\n")
    section = "\n".join(line.removeprefix("# ") for line in section.splitlines())
    raw = scenario_yaml.read(f"{head}{section}\n\n{rest}\n")
    if key == "teaching":  # of tiers that train, and there are none in the example
        raw["students"]["tiers"][0]["trains"] = True
        raw["teaching"]["every"] = 3
    assert getattr(Scenario.model_validate(raw), key) == chosen


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "task.py").write_text("mine")
    with pytest.raises(init.InitError, match="task.py exist and are left as they are"):
        init.write(tmp_path)
    assert (tmp_path / "task.py").read_text() == "mine"
    assert not (tmp_path / "scenario.yaml").exists()
