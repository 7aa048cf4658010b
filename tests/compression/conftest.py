"""Hypothesis for the codec's tests: no deadline, since the time of one example depends on who else uses the machine."""

from hypothesis import settings

settings.register_profile("fedpress", deadline=None)
settings.load_profile("fedpress")
