"""What goes wrong and how long it takes: `network` and `bandwidth_trace` (links), `faults` (on purpose)."""

__all__ = ["bandwidth_trace", "faults", "faulty_client", "network"]
