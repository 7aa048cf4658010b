"""A federation of real processes on real machines: `fedpress server`, `fedpress client`, `fedpress keys`.

`service` is the server, `daemon` the client, `settings` what they are told, `keys` who may come. `superlink` and
`supernode` are Flower's processes with what is changed in them, `children` and `guard` look after processes,
`control` speaks to a SuperLink, `monitor` and `run_figures` to Prometheus; `flower_processes` is a whole deployment
for tests and benchmarks.
"""

__all__ = [
    "children",
    "control",
    "daemon",
    "flower_processes",
    "guard",
    "keys",
    "monitor",
    "run_figures",
    "service",
    "settings",
    "superlink",
    "supernode",
]
