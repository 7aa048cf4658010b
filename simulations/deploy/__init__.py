"""A federation of real processes on real machines: `fedpress server`, `fedpress client`, `fedpress keys`.

`service` is the server, which runs an app (`run_app`) and keeps two processes (`link_process`, `hub_process`); `daemon`
is the client; `settings` are their YAML files, `keys` the certificates and node keys.
`superlink` and `supernode` run Flower's processes with fedpress's limits and repairs: `admission` says who may ask a
SuperLink for what, `connections` how much may be open, `operators` how an operator proves to be one. `children` and
`guard` supervise processes, `control` is a client of a SuperLink's Control API, `monitor` and `run_figures` serve
metrics to Prometheus.
`flower_processes` is a whole deployment on one machine, for tests and benchmarks.
"""

__all__ = [
    "admission",
    "children",
    "connections",
    "control",
    "daemon",
    "flower_processes",
    "guard",
    "hub_process",
    "keys",
    "link_process",
    "monitor",
    "operators",
    "run_app",
    "run_figures",
    "service",
    "settings",
    "superlink",
    "supernode",
]
