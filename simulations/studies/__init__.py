"""Studies behind the figures of docs/: run from a checkout, not part of the wheel."""

__all__ = ["compression", "distillation", "heterogeneous", "pruning", "search", "techniques", "transformer"]
