"""Command line: one module for each group of commands, registered in `simulations/__main__.py`.

`simulate` holds `simulate`, `students` and `init`; `report` holds `report` and `inspect`; `pull` holds `pull` and
`run`; `service` holds `server` and `client`. `bench` registers the commands of `bench_machine`, `bench_processes`,
`bench_scenarios` and `suites`. `common` has shared options and error handling; `inspection`, `progress` and
`pull_display` produce the output.
"""

__all__ = [
    "bench",
    "bench_machine",
    "bench_processes",
    "bench_scenarios",
    "common",
    "hub",
    "inspection",
    "keys",
    "probe",
    "progress",
    "pull",
    "pull_display",
    "report",
    "service",
    "simulate",
    "suites",
]
