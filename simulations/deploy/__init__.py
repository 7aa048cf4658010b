"""A federation of real processes on real machines: `fedpress server`, `fedpress client`, `fedpress keys`."""

__all__ = [
    "children",
    "control",
    "daemon",
    "flower_processes",
    "guard",
    "keys",
    "monitor",
    "service",
    "settings",
    "superlink",
    "supernode",
]
