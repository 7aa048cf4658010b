"""Suites of runs: methods x scenarios x partitions x seeds, for `fedpress bench communication`.

`suite` reads the YAML file and crosses it to cells, `cells` runs and stores them, `measures` makes the tables, `page`
the report; `code_version` is a hash of the code that made a run.
"""

__all__ = ["cells", "code_version", "measures", "page", "suite"]
