"""`records/house_figures.py`: what it counts, on small trees that are made for it and on this one."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house_figures", ROOT / "records" / "house_figures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(house: ModuleType, **files: str) -> list:
    """Modules of a tree, by their dotted names with double underscores for dots."""
    named = {name.replace("__", "."): text for name, text in files.items()}
    return [
        house.Module(name, Path(name.replace(".", "/") + ".py"), text, ast.parse(text)) for name, text in named.items()
    ]


def test_circles_are_components_of_two_or_more(house: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}, "e": {"f"}, "f": {"e"}, "g": {"a"}}
    assert house.circles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_folders_can_go_in_a_circle_that_no_module_does(house: ModuleType) -> None:
    graph = {"server.a.one": {"server.b.one"}, "server.b.two": {"server.a.two"}}
    assert house.circles(graph) == []
    assert house.circles(house.siblings(graph)) == [["server.a", "server.b"]]


def test_imports_within_functions_count_and_those_for_types_do_not(house: ModuleType) -> None:
    (module,) = made(
        house,
        server__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fedpress.server import c\n"
        "def f():\n    from fedpress.server.b import thing\n",
    )
    assert house.imports(module, {"server.a", "server.b", "server.c"}) == {"server.b"}


def test_names_declared_twice(house: ModuleType) -> None:
    fields = "    a: int\n    b: int\n    c: int\n"
    modules = made(
        house,
        simulations__x=f"class Section(BaseModel):\n    pass\nclass Choice(Section):\n{fields}",
        server__y=f"class Settings:\n{fields}    d: int\nclass Other:\n    a: int\n    e: int\n    f: int\n",
    )
    assert house.declared_twice(modules) == [("simulations.x.Choice", "server.y.Settings", ["a", "b", "c"])]


def test_underscored_names_of_others(house: ModuleType) -> None:
    text = "class A:\n    def _own(self): return 1\nclass B:\n    def go(self, a): return a._own(), a._replace()\n"
    assert [place.split()[-1] for place in house.underscored(made(house, server__z=text))] == ["a._own"]


def test_lines_of_code_are_those_that_are_run(house: ModuleType) -> None:
    text = '"""A module."""\n\nA = 1  # one\n"""What A is,\nin two lines."""\n# alone\n'
    text += 'def f(\n    a,  # an argument\n\n):\n    """Return."""\n    return """two\nlines"""\n'
    (module,) = made(house, server__z=text)
    assert (module.lines, house.lines_of_code(module)) == (13, 6)


def test_flowers_insides(house: ModuleType) -> None:
    text = "from flwr.app import Message\nfrom flwr.supercore import log\nimport flwr.proto\n"
    assert [place.split()[-1] for place in house.insides_of_flower(made(house, client__z=text))] == [
        "flwr.supercore",
        "flwr.proto",
    ]


def test_this_tree(house: ModuleType) -> None:
    figures = house.measure(ROOT, details=True)
    assert figures["files"] == len(house.read(ROOT)) > 100
    assert 0 < figures["keys of a scenario"]["front"] <= figures["keys of a scenario"]["all"]
    assert figures["median file, lines"] < figures["longest file"][0] < 1000
