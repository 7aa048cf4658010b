"""Flower strategies: `sparse_fed` for one model, `tiered_fed` for several sizes of it; `resume` after a stop."""

__all__ = ["console", "drop_in", "resume", "sparse_fed", "tiered_fed"]
