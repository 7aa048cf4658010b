"""Reports of runs: HTML pages, figures, tables and TensorBoard files.

`run_page` is the report of one run, `comparison_page` that of several, `run_result` the object for Python and
notebooks. They use `figures` (the plots) on `drawings` (SVG and PNG), `tables`, `units` and `plain` (text), `series`
(curves of accuracy), `questions` (accuracy within a budget, cost to a target) and `confidence` (intervals).
`event_files` writes for TensorBoard.
"""

__all__ = [
    "comparison_page",
    "confidence",
    "drawings",
    "event_files",
    "figures",
    "plain",
    "questions",
    "run_page",
    "run_result",
    "series",
    "tables",
    "units",
]
