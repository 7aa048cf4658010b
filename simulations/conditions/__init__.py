"""Conditions of a simulation: `network` and `bandwidth_trace` (links on a virtual clock), `faults` (injected faults).

`faulty_client` is the ClientApp of a simulation with faults.
"""

__all__ = ["bandwidth_trace", "faults", "faulty_client", "network"]
