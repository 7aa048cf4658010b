"""What tests of scenarios share."""

from __future__ import annotations

import pytest

from fedpress.simulations.scenario.scenario import ScenarioError, load


def problems(*overrides: str, base: str = "digits") -> str:
    """Return the lines of the error that loading a scenario raises, without the first."""
    with pytest.raises(ScenarioError) as caught:
        load(base, overrides)
    return str(caught.value).partition("\n")[2] or str(caught.value)
