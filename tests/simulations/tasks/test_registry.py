"""Tasks by name, by class, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedpress.compression.models.task import check_splits
from fedpress.simulations.tasks import registry
from fedpress.simulations.tasks.registry import TaskError, create

MINE = """
from fedpress.compression.models.task import Task

class Mine(Task):
    name = "mine"
    def __init__(self, size, color="red"):
        self.size, self.color = size, color
    def model(self): ...
    def data(self): ...

class NoTask: ...
"""


@pytest.fixture(autouse=True)
def _clean_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("mine_task", "task"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine_task.py").write_text(MINE)
    return tmp_path


def test_a_class_of_ones_own_with_options(folder):
    made = create("mine_task:Mine", {"size": 3, "color": "blue"}, folder)
    assert (made.name, made.size, made.color) == ("mine", 3, "blue")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("digit", {}, "expected digits, fashion-mnist, text, verses or .*; did you mean 'digits'"),
        ("mine_task:", {}, "as 'module:Class'"),
        ("mine_task.py:Mine", {"size": 1}, "there is no module 'mine_task.py'"),
        ("nowhere:Mine", {}, "there is no module 'nowhere'"),
        ("mine_task:Mime", {}, "no class 'Mime'; did you mean 'Mine'"),
        ("mine_task:NoTask", {}, "NoTask is not a subclass of"),
        ("mine_task:Mine", {}, "task.size: missing"),
        ("mine_task:Mine", {"size": 1, "colr": 2}, "task.colr: .* options are: size, color; did you mean 'color'"),
        ("digits", {"data_dir": "/"}, "task.data_dir: task 'digits' does not take it; its options are: model"),
    ],
)
def test_what_cannot_be_made_is_said(folder, name, options, text):
    with pytest.raises(TaskError, match=text):
        create(name, options, folder)


def test_an_error_inside_the_users_module_is_not_hidden(tmp_path):
    (tmp_path / "mine_task.py").write_text("import module_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
        create("mine_task:Mine", {}, tmp_path)


def test_two_folders_with_the_same_file_name(tmp_path):
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "task.py").write_text(MINE.replace('"mine"', f'"mine {number}"'))
    assert create("task:Mine", {"size": 0}, tmp_path / "1").name == "mine 1"
    assert create("task:Mine", {"size": 0}, tmp_path / "2").name == "mine 2"
    assert create("task:Mine", {"size": 0}, tmp_path / "1").name == "mine 1"


def test_a_file_named_like_the_standard_library_is_refused(tmp_path):
    (tmp_path / "random.py").write_text(MINE)
    with pytest.raises(TaskError, match="name of a standard-library module"):
        create("random:Mine", {"size": 0}, tmp_path)
    assert sys.modules["random"].__file__ != str(tmp_path / "random.py")


def test_names_are_checked_without_torch():
    code = (
        "import sys; from fedpress.simulations.tasks import registry; registry.check_name('a.b:C');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_skeleton_is_a_task_with_sound_splits():
    made = create("fedpress.simulations.tasks.template:Points", {"noise": 0.5})
    check_splits(made.data())
    assert sum(parameter.numel() for parameter in made.model().parameters()) == 4_996


def test_every_built_in_task_can_be_made():
    for name in registry.names():
        assert create(name).name == name
