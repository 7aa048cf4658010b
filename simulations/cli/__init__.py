"""Command line: one module for each group of commands, registered in `simulations/__main__.py`.

`simulate` also holds the commands students and init, `report` inspect, `pull` run, and `service` server and client.
`bench` registers the commands of `bench_machine`, `bench_processes`, `bench_scenarios` and `suites`. `common` has
shared options and error handling; `inspection`, `progress` and `pull_display` produce the output.
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
