"""Names outside Flower's public API that a client uses; tests/test_flower_doors.py lists them."""

from flwr.supernode.cli.flwr_clientapp import flwr_clientapp as flwr_clientapp

IMPORTED_FOR_A_MESSAGE = ("flwr.cli.install",)
"""Modules that `flwr_clientapp` imports late: a warm trainer loads them before it forks."""
