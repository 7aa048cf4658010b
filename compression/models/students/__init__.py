"""Students within a budget of bytes, parameters or latency, step by step.

`pipeline` makes one; `budgets` says what fits; `initial_student` is where it starts, with `widths` and `depth`;
`search` looks for a better shape.
"""

__all__ = ["budgets", "depth", "initial_student", "pipeline", "search", "settings", "widths"]
