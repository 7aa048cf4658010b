"""The commands of fedpress, a file for each subject; `common` is what they share.

`bench` registers those of `bench_machine`, `bench_processes`, `bench_scenarios` and `suites`. `inspection`,
`progress` and `pull_display` are what commands show.
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
