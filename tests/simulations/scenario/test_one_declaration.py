"""A setting is declared once: no class of fedpress repeats the fields of a scenario's section.

Classes of settings are compared by the fields that they declare themselves, so that one which extends another, or
holds it, repeats nothing.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

from fedpress.compression import settings
from fedpress.simulations.scenario import template
from fedpress.simulations.scenario.scenario import Scenario

ROOT = Path(__file__).parents[3]
PACKAGES = ("compression", "client", "server", "simulations")

FIELDS, PART = 3, 0.6
"""Two classes are twins that share so many fields, which are this part of the smaller one's."""

NO_TWINS = {
    frozenset({"NetworkSettings", "Profile"}): "the figures that a kind of link has, none of them null",
    frozenset({"NetworkSettings", "Link"}): "what was drawn for one client",
    frozenset({"NetworkSettings", "Course"}): "columns of a trace, arrays over time",
    frozenset({"Budget", "Limits"}): "what a device is found to bear",
    frozenset(
        {"OptimizerSettings", "Training"}
    ): "the server's rule and the clients' have other names, defaults, bounds",
}
"""Pairs that share fields, and why they are no twins all the same."""


def declared() -> Iterator[tuple[str, str, frozenset[str]]]:
    """The module, name and own public fields of each class in the packages."""
    for path in itertools.chain.from_iterable(sorted(ROOT.joinpath(package).rglob("*.py")) for package in PACKAGES):
        module = ".".join(("fedpress", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
                public = {name.id for name in names if isinstance(name, ast.Name) and not name.id.startswith("_")}
                yield module, node.name, frozenset(public)


def sections() -> set[tuple[str, str]]:
    """The module and name of each class that a scenario's keys are declared in."""
    found = {key.section for key in template.keys() if key.section is not None} | {Scenario}
    return {(base.__module__, base.__name__) for section in found for base in section.__mro__}


def twins() -> set[frozenset[str]]:
    """Pairs of a scenario's section and another class which share most of the smaller one's fields."""
    classes, of_keys = list(declared()), sections()
    found = set()
    for (module, name, own), (other_module, other, others) in itertools.combinations(classes, 2):
        if (module, name) in of_keys or (other_module, other) in of_keys:
            shared = len(own & others)
            if shared >= FIELDS and shared >= PART * min(len(own), len(others)):
                found.add(frozenset({name, other}))
    return found


def test_no_class_repeats_the_fields_of_a_section() -> None:
    found = [" and ".join(sorted(pair)) for pair in twins() - NO_TWINS.keys()]
    assert found == [], "declare their fields once, in a class that both use (fedpress.compression.settings)"


def test_the_exceptions_are_still_needed() -> None:
    assert [sorted(pair) for pair in NO_TWINS.keys() - twins()] == []


def test_a_class_that_extends_another_repeats_none_of_its_fields() -> None:
    for section in {key.section for key in template.keys() if key.section is not None}:
        for name in settings.fields(section):
            declaring = [base for base in section.__mro__ if name in base.__dict__.get("__annotations__", {})]
            assert len(declaring) == 1, f"{name} is declared by {declaring}"
