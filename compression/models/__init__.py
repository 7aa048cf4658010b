"""Models: what they are, what they cost, and how smaller ones are made of them. Needs torch.

`task` is a model with its data; `architecture` its shape as data; `transformer` and `attention` what text models are
built of; `cost` what one takes; `class_accuracy` what each class loses; `reproducible` the same bits again. Below:
`pruning`, `distillation`, `quantization`, `students` (these in turn, within a budget), `bundles` (the file of a
student).
"""

__all__ = [
    "architecture",
    "attention",
    "bundles",
    "class_accuracy",
    "cost",
    "device_speed",
    "distillation",
    "masks",
    "pruning",
    "quantization",
    "reproducible",
    "step",
    "students",
    "task",
    "transformer",
]
