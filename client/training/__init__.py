"""Local training: the passes over a client's examples, and what they are made of.

`train` runs a round, `local_steps` are its steps (precision, accumulation, clipping), `optimizers` and `learning_rates`
what the steps take, and `running_statistics` are those that batch normalization brings back from it.
"""

__all__ = ["learning_rates", "local_steps", "optimizers", "running_statistics", "train"]
