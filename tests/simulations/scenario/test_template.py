"""`fedpress init`: every key is there, explained, and the files are valid as they are."""

from __future__ import annotations

import pytest

from fedpress.compression import settings
from fedpress.simulations.conditions.faults import Chances
from fedpress.simulations.conditions.network import NetworkSettings
from fedpress.simulations.scenario import rounds, scenario, students, template, yaml_source
from fedpress.simulations.scenario.scenario import Scenario


def test_the_commented_scenario_reads_back_as_the_example(tmp_path):
    template.write(tmp_path / "study")
    loaded = scenario.load(tmp_path / "study")
    task = template.EXAMPLE.task.model_copy(update={"folder": str(tmp_path / "study")})
    assert loaded == template.EXAMPLE.model_copy(update={"task": task})


def test_every_key_is_written_below_a_comment():
    lines = template.commented(template.EXAMPLE).splitlines()

    def check(model, indent: str, number: int) -> int:
        """Find the keys in their order, from one line on; return the line of the last."""
        for key, field in settings.fields(model).items():
            if key == "folder":  # set by `load`
                continue
            number = next(i for i in range(number + 1, len(lines)) if lines[i].startswith(f"{indent}{key}:"))
            assert lines[number - 1].startswith(f"{indent}# "), key
            for section in settings.sections(field.annotation) if key != "tiers" else ():
                absent = lines[number].endswith(" null")
                assert not absent or lines[number + 1] == f"{indent}# {key}:"
                number = check(section, f"{indent}#   " if absent else f"{indent}  ", number)
        return number

    assert check(Scenario, "", -1) > 200


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("network", NetworkSettings()),
        ("faults", Chances()),
        ("fusion", students.FusionChoice()),
        ("teaching", students.Teaching(every=3)),
        ("sparsity", rounds.Sparsity()),
        ("students.assistants", students.AssistantChoice()),
        ("students.data_free", students.DataFreeChoice(recipe="deep-inversion")),
        ("students.continuations", students.ContinuationChoice()),
    ],
)
def test_what_is_commented_out_is_valid_too(path, chosen):
    *above, key = path.split(".")
    indent = "  " * len(above)
    lines = [*template.commented(template.EXAMPLE).splitlines(), ""]
    begin = lines.index(f"{indent}{key}: null")
    end = next(i for i in range(begin + 2, len(lines)) if not lines[i].startswith(f"{indent}#   "))
    block = [indent + line.removeprefix(f"{indent}# ") for line in lines[begin + 1 : end]]
    raw = yaml_source.read("\n".join([*lines[:begin], *block, *lines[end:]]))
    if key == "teaching":  # of tiers that train, and there are none in the example
        raw["students"]["tiers"][0]["trains"] = True
        raw["teaching"]["every"] = 3
    found = Scenario.model_validate(raw)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == chosen


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "task.py").write_text("mine")
    with pytest.raises(template.InitError, match="task.py exist and are left as they are"):
        template.write(tmp_path)
    assert (tmp_path / "task.py").read_text() == "mine"
    assert not (tmp_path / "scenario.yaml").exists()
