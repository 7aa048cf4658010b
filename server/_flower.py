"""What the server takes from Flower that Flower does not call public; tests/test_flower_doors.py lists it."""

from flwr.supercore.run import Run as Run

from fedpress.compression.messages import flower_version

flower_version.warn_if_untested()
