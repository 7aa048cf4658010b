"""Shared by all tests: no telemetry, no threads that fight, Flower's home in a temporary folder, the example apps importable."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_HOME"] = tempfile.mkdtemp(prefix="fedpress-flwr-")
sys.path.insert(0, str(Path(__file__).parent / "apps"))
