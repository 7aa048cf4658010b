"""Old keys: each error names the new key, which exists."""

from __future__ import annotations

import pytest
from tests.simulations.scenario.problems import problems

from fedpress.compression import settings
from fedpress.simulations.scenario import renamed
from fedpress.simulations.scenario.scenario import Scenario


@pytest.mark.parametrize(("old", "new"), renamed.RENAMED.items())
def test_an_old_key_is_answered_with_its_new_name(old, new):
    place = old.replace("tiers.", "tiers.0.")  # of a list, the first
    assert f"{place}: renamed to {new} (value given: 1)" in problems(f"{place}=1")
    *above, key = new.split(".")
    section: type = Scenario
    for part in above:
        section = next(settings.sections(settings.fields(section)[part].annotation))
    assert key in settings.fields(section)
