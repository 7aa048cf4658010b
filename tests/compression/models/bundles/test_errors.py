"""The tree in the module's docstring is the one of its classes."""

import inspect
import re

from fedpress.compression.errors import FedpressError
from fedpress.compression.models.bundles import errors


def test_the_tree_drawn_is_that_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^ *[├└]── (\w+) ", errors.__doc__, re.MULTILINE)
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    assert sorted(drawn) == sorted(each.__name__ for each in classes if each is not errors.BundleError)
    assert all(each.__bases__ == (errors.BundleError,) for each in classes if each is not errors.BundleError)
    assert errors.BundleError.__bases__ == (FedpressError, ValueError)
