"""Weights and channels that a model can do without.

`structural` removes channels in `channel_groups` by `importance`; `weights` sets single ones to zero on a `schedule`;
`at_initialization` and `dynamic_sparsity` choose them before and during training; `fine_tuning` and `penalties`
train; `sparse_kernels` runs what is left.
"""

__all__ = [
    "at_initialization",
    "channel_groups",
    "dynamic_sparsity",
    "fine_tuning",
    "importance",
    "penalties",
    "schedule",
    "settings",
    "sparse_kernels",
    "structural",
    "weights",
]
