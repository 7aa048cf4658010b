"""Students within a budget of parameters, bytes, FLOPs, memory or latency.

Begin with `pipeline.standard`, the usual list of steps, and `pipeline.run`, which makes the student. `budgets` measures
costs; `initial_student` prunes a model to a budget, with `depth` for fewer blocks and `inheritance` for another
architecture; `search` looks for the best architecture within it, with `widths` for all pruned versions of a model.
"""

__all__ = ["budgets", "depth", "inheritance", "initial_student", "pipeline", "search", "settings", "widths"]
