"""The global model: optimizer steps, versions for clients, masks.

`global_model` holds the parts together: `optimizers` step the master by a round's mean update, `versions` are the
model as clients hold it, `average` is its mean over the rounds; `mask_schedules` and `mask_history` make and send the
masks of a sparse model.
"""

__all__ = ["average", "global_model", "mask_history", "mask_schedules", "optimizers", "settings", "versions"]
