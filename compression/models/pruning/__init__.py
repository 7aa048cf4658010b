"""Pruning: removal of the least important channels or weights of a model.

`schedule.prune` removes a part of a trained model's parameters in steps, with `fine_tuning` between them and
`penalties` before; `structural` removes channels, neurons and heads, `weights` makes masks of single weights, both by
`importance`. `channel_groups` finds what goes together: `channel_flow` runs a model, `channel_labels` knows what each
operation does with channels, and `code_sizes` which numbers in a model's code follow them. `token_rows` drops rows of
embeddings. `sparsegpt` removes single weights and changes the others. `at_initialization` and `dynamic_sparsity` choose
masks before and during federated training; `sparse_kernels` executes sparse layers.
"""

__all__ = [
    "at_initialization",
    "channel_flow",
    "channel_groups",
    "channel_labels",
    "channel_probe",
    "channel_removal",
    "channel_rules",
    "channel_views",
    "code_sizes",
    "dynamic_sparsity",
    "fine_tuning",
    "importance",
    "label_sets",
    "penalties",
    "schedule",
    "settings",
    "sparse_kernels",
    "sparsegpt",
    "structural",
    "token_rows",
    "trial_copy",
    "weights",
]
