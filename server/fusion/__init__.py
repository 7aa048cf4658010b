"""Models of different sizes that learn from each other.

`client_ensemble` distills clients' models into the global one, `mutual_distillation` lets tiers teach each other,
`heterofl` lets a small one be a slice of the large one.
"""

__all__ = ["client_ensemble", "heterofl", "mutual_distillation", "settings"]
