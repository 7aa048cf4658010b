"""The global model and how it moves.

`global_model` holds it, `versions` are what clients have of it, `optimizers` apply a round's mean, `average` smooths
it; `mask_schedules` and `mask_history` are the masks of a sparse one.
"""

__all__ = ["average", "global_model", "mask_history", "mask_schedules", "optimizers", "settings", "versions"]
