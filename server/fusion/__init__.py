"""Fusion of models beyond the mean of updates.

`client_ensemble` distills the clients' models into the global one (FedDF), `mutual_distillation` lets models of
different sizes teach each other, and in `heterofl` a small model is a slice of the large one.
"""

__all__ = ["client_ensemble", "heterofl", "mutual_distillation", "settings"]
