"""Models, their cost, and how small ones (students) are made from large ones (teachers). Needs torch.

Begin with `task`, the interface of a model with its data, and `students.pipeline`, which makes a student within a
budget by a list of steps (`step`): `pruning`, `distillation`, `quantization`, and at the end `bundles`, the download
file. Beside them: `architecture` (a model's shape as data), `masks` (weights held at zero), `attention` and
`transformer` (layers for text models), `cost` and `device_speed` (bytes, FLOPs and milliseconds of a forward pass),
`inputs` (one tensor, tensors by name, or read from a disk), `forward` (outputs for many inputs as of one batch),
`class_accuracy` (accuracy lost by class), `batch_norm` (running statistics of given weights), `batches` (of one
example, with batch normalization), `trainable` (which parameters are trained, by patterns), `hidden_matrices` (weights
between other weights), `checkpointing` (of gradients), `reproducible` (the same bits on every machine).
"""

__all__ = [
    "architecture",
    "attention",
    "batch_norm",
    "batches",
    "bundles",
    "checkpointing",
    "class_accuracy",
    "cost",
    "device_speed",
    "distillation",
    "forward",
    "hidden_matrices",
    "inputs",
    "masks",
    "pruning",
    "quantization",
    "reproducible",
    "step",
    "students",
    "task",
    "trainable",
    "transformer",
]
