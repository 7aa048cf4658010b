"""Models, their cost, and how small ones (students) are made from large ones (teachers). Needs torch.

Begin with `task`, the interface of a model with its data, and `students.pipeline`, which makes a student within a
budget by a list of steps (`step`): `pruning`, `distillation`, `quantization`, and at the end `bundles`, the download
file. Beside them: `architecture` (a model's shape as data), `stacks` and `block_forms` (blocks that may be dropped),
`masks` (weights held at zero), `attention` and `transformer` (layers for text models), `cost` and `device_speed`
(bytes, FLOPs and milliseconds of a forward pass),
`inputs` (one tensor, tensors by name, or read when needed), `stored` (examples on a disk, padded by a collator),
`outputs` (logits, alone or by name), `forward` (outputs for many inputs as of one batch),
`class_accuracy` (accuracy lost by class), `batch_norm` (running statistics of given weights), `batches` (of one
example, with batch normalization), `reproducible` (the same bits on every machine).
"""

__all__ = [
    "architecture",
    "attention",
    "batch_norm",
    "batches",
    "block_forms",
    "bundles",
    "class_accuracy",
    "cost",
    "device_speed",
    "distillation",
    "forward",
    "inputs",
    "masks",
    "outputs",
    "pruning",
    "quantization",
    "reproducible",
    "stacks",
    "step",
    "stored",
    "students",
    "task",
    "transformer",
]
