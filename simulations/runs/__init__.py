"""Runs of a scenario.

`launch` starts a run after the `checks`: of data (`check_data`), of model and training (`check_training`), with one
error (`check_texts`). `forecast` tells what will be trained, sent, held and stored. `runner` carries it out,
`recorder` keeps its figures and tells each `observer`. `job`, `workload` and `tier_workload` are the clients' half of
a scenario, `plan` and `plan_*` the server's; `initial_weights` reads the file that a run begins with. `replay` and
`remake_students` start from a finished run, `probe_tiers` measures a device.
"""

__all__ = [
    "check_data",
    "check_texts",
    "check_training",
    "checks",
    "forecast",
    "initial_weights",
    "job",
    "launch",
    "observer",
    "plan",
    "plan_masks",
    "plan_strategy",
    "plan_students",
    "probe_tiers",
    "recorder",
    "remake_students",
    "replay",
    "runner",
    "tier_workload",
    "workload",
]
