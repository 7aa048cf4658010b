"""Pruning: removal of the least important channels or weights of a model.

`schedule.prune` removes a part of a trained model's parameters in steps, with `fine_tuning` between them and
`penalties` before; `structural` removes channels, neurons and heads, `weights` makes masks of single weights, both by
`importance`. `channel_groups` finds what goes together: `channel_flow` runs a model, `channel_labels` knows what each
operation does with channels. `sparsegpt` removes single weights and changes the
others. `at_initialization` and `dynamic_sparsity` choose masks before and during federated training; `sparse_kernels`
executes sparse layers.
"""

__all__ = [
    "at_initialization",
    "channel_flow",
    "channel_groups",
    "channel_labels",
    "dynamic_sparsity",
    "fine_tuning",
    "importance",
    "penalties",
    "schedule",
    "settings",
    "sparse_kernels",
    "sparsegpt",
    "structural",
    "weights",
]
