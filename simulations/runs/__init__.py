"""A run of a scenario, from the plan to the last round.

`launch` starts one, `runner` carries it out, `recorder` writes it down; `workload` is what clients train on, `plan_*`
what the server does; `replay`, `remake_students` and `probe_tiers` start from a run or a scenario that is there.
"""

__all__ = [
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
