"""What is written of the keys: the files of `fedpress init`, valid as they are, and the reference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedpress.compression import settings
from fedpress.compression.models.distillation.settings import RECIPES, Assistants, Continuations
from fedpress.server.fusion.settings import FedDF, Teaching
from fedpress.server.model.mask_schedules import Sparsity
from fedpress.simulations.conditions.faults import Chances
from fedpress.simulations.conditions.network import NetworkSettings
from fedpress.simulations.scenario import scenario, template, yaml_source
from fedpress.simulations.scenario.encoder import EncoderSettings
from fedpress.simulations.scenario.scenario import Scenario


@pytest.mark.parametrize("advanced", [False, True])
def test_the_commented_scenario_reads_back_as_the_example(tmp_path, advanced):
    template.write(tmp_path / "study", advanced=advanced)
    loaded = scenario.load(tmp_path / "study")
    task = template.EXAMPLE.task.model_copy(update={"folder": str(tmp_path / "study")})
    assert loaded == template.EXAMPLE.model_copy(update={"task": task})


@pytest.mark.parametrize("advanced", [False, True])
def test_keys_are_written_below_a_comment_and_advanced_ones_when_asked(advanced):
    lines = template.commented(template.EXAMPLE, advanced=advanced).splitlines()

    def check(model, indent: str, number: int) -> int:
        """Find the keys in their order, from one line on; return the line of the last."""
        for key, field in settings.fields(model).items():
            if template.is_advanced(field) and not advanced:
                continue
            number = next(i for i in range(number + 1, len(lines)) if lines[i].startswith(f"{indent}{key}:"))
            assert lines[number - 1].startswith(f"{indent}# "), key
            for section in settings.sections(field.annotation) if key not in ("tiers", "steps") else ():
                absent = lines[number].endswith(" null")
                assert not absent or lines[number + 1] == f"{indent}# {key}:"
                number = check(section, f"{indent}#   " if absent else f"{indent}  ", number)
        return number

    check(Scenario, "", -1)
    assert any(line.strip().startswith("beta1:") for line in lines) is advanced
    assert yaml_source.read("\n".join(lines))["students"]["tiers"] == [
        {"name": "phone", "parameters": 0.25}, {"name": "sensor", "bundle_bytes": 1500},
    ]  # fmt: skip


def test_what_is_advanced_is_written_where_it_is_not_the_default():
    changed = template.EXAMPLE.model_copy(update={"encoder": EncoderSettings(clip_norm=2.0)})
    assert "  clip_norm: 2.0" in template.commented(changed, advanced=False).splitlines()


def test_the_page_of_keys_is_that_of_the_declarations():
    page = Path(__file__).parents[3] / "docs" / "reference" / "scenario.md"
    assert page.read_text(encoding="utf-8") == template.reference(), (
        f"python -m fedpress.simulations.scenario.template {page} writes it anew"
    )


def test_the_command_prints_how_many_keys_there_are(tmp_path):
    command = [sys.executable, "-m", "fedpress.simulations.scenario.template", str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == template.counts() and 0 < found["front_keys"] < found["keys"] == len(list(template.keys()))
    assert (tmp_path / "page.md").read_text() == template.reference()


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("network", NetworkSettings()),
        ("faults", Chances()),
        ("fusion", FedDF()),
        ("teaching", Teaching(every=3)),
        ("sparsity", Sparsity()),
        ("students.assistants", Assistants()),
        ("students.data.data_free", RECIPES["deep-inversion"]),
        ("students.data.continuations", Continuations()),
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
