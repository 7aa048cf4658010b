"""The exceptions: the tree of the module's docstring is the tree of the classes."""

import pickle
import re

import pytest

from fedpress.compression import errors


def tree() -> dict[str, str]:
    """Return the parent of each class that the docstring draws, by its name."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for match in re.finditer(r"^([ │├└─]*)([A-Z]\w+)", (errors.__doc__ or "").partition("\n")[2], re.MULTILINE):
        depth, name = len(match[1]), match[2]
        if depth < 4:  # a sentence
            continue
        path = [entry for entry in path if entry[0] < depth]
        parents[name] = path[-1][1] if path else "Exception"
        path.append((depth, name))
    return parents


CLASSES = [each for each in vars(errors).values() if isinstance(each, type)]


def test_the_docstring_draws_every_class_below_its_parent() -> None:
    assert tree() == {each.__name__: each.__bases__[0].__name__ for each in CLASSES}


@pytest.mark.parametrize("fault", CLASSES)
def test_each_crosses_processes_and_ends_a_command_with_2(fault: type[errors.FedpressError]) -> None:
    again = pickle.loads(pickle.dumps(fault("what was given and what was expected")))
    assert type(again) is fault and str(again) == "what was given and what was expected"
    assert again.exit_code == 2
