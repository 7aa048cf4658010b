"""Models, their cost, and how small ones (students) are made from large ones (teachers). Needs torch.

Begin with `task`, the interface of a model with its data, and `students.pipeline`, which makes a student within a
budget by a list of steps (`step`): `pruning`, `distillation`, `quantization`, and at the end `bundles`, the download
file. Beside them:

* weights that are brought along: `pretrained` (from safetensors files), `adapters` (merged into a model);
* shapes and layers: `architecture` (a model's shape as data), `stacks` and `block_forms` (blocks that may be dropped),
  `masks` (weights held at zero), `attention` and `transformer` (layers for text models);
* inputs and outputs: `inputs` (one tensor, tensors by name, or read when needed), `stored` (examples on a disk, padded
  by a collator), `outputs` (logits, alone or by name), `forward` (outputs for many inputs as of one batch),
  `batch_dependence` (whether they are so);
* data: `calibration` (second moments of the layers' inputs), `reconstruction` (weights that make up for each other's
  errors);
* training: `trainable` (which parameters are trained, by patterns), `hidden_matrices` (weights between other weights),
  `checkpointing` (of gradients), `batch_norm` (running statistics of given weights), `batches` (of one example, with
  batch normalization);
* figures: `cost` and `device_speed` (bytes, FLOPs and milliseconds of a forward pass), `class_accuracy` (accuracy lost
  by class), `computed` (what modules keep of a pass), `reproducible` (the same bits on every machine).
"""

__all__ = [
    "adapters",
    "architecture",
    "attention",
    "batch_dependence",
    "batch_norm",
    "batches",
    "block_forms",
    "bundles",
    "calibration",
    "checkpointing",
    "class_accuracy",
    "computed",
    "cost",
    "device_speed",
    "distillation",
    "forward",
    "hidden_matrices",
    "inputs",
    "masks",
    "multihead_attention",
    "outputs",
    "pretrained",
    "pruning",
    "quantization",
    "reconstruction",
    "reproducible",
    "stacks",
    "step",
    "stored",
    "students",
    "task",
    "trainable",
    "transformer",
    "vocabulary",
]
