"""The commands of fedpress, a file for each subject; `common` is what they share."""

__all__ = [
    "bench",
    "common",
    "hub",
    "inspection",
    "probe",
    "progress",
    "pull_display",
    "report",
    "service",
    "simulate",
    "suites",
]
