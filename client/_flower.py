"""What a client takes from Flower that Flower does not call public; tests/test_flower_doors.py lists it."""

from flwr.supernode.cli.flwr_clientapp import flwr_clientapp as flwr_clientapp

IMPORTED_FOR_A_MESSAGE = ("flwr.cli.install",)
"""Modules that `flwr_clientapp` imports late."""
