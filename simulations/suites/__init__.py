"""Suites: methods x scenarios x seeds, each cell a run that is kept.

`suite` reads one, `cells` runs it, `measures` and `page` say what came out, `code_version` what it was run with.
"""

__all__ = ["cells", "code_version", "measures", "page", "suite"]
