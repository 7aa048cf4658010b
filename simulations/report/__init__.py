"""Pages, figures and tables of runs.

`run_result` is a run in a notebook, `run_page` its report, `comparison_page` that of several; `figures` and
`drawings` are drawn, `tables` and `units` written; `series` and `confidence` are what is shown; `event_files` is
TensorBoard's.
"""

__all__ = [
    "comparison_page",
    "confidence",
    "drawings",
    "event_files",
    "figures",
    "run_page",
    "run_result",
    "series",
    "tables",
    "units",
]
