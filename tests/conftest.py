"""Shared by all tests: no test is timed, no telemetry, Flower's home in a temporary folder, example apps importable."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

# One of several processes: with threads for all cores each, they would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared: how long an example takes says nothing. More of them: --hypothesis-profile thorough
settings.register_profile("fedpress", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("fedpress")

collect_ignore = ["apps"]  # programs that tests start; they hold no doctests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have most slow tests: at the end, short ones keep all processes at work."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def _quiet_flower() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="fedpress-flwr-") as home:
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        os.environ["FLWR_HOME"] = home
        yield
