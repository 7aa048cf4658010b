"""Keys that had another name before the first release: the error for an old key gives the new one."""

from __future__ import annotations

from typing import Final

RENAMED: Final = {
    "encoder.residual": "encoder.residual_dtype",
    "network.loss": "network.packet_loss",
    "network.spread": "network.rate_sigma",
    "sampling.per_round": "sampling.clients_per_round",
    "sampling.staleness": "sampling.staleness_exponent",
    "server.averaging": "server.ema_decay",
    "sparsity.fraction": "sparsity.drop_fraction",
    "sparsity.start": "sparsity.initial_method",
    "students.continuations": "students.data.continuations",
    "students.data_free": "students.data.data_free",
    "students.distil": "students.distill",
    "students.distill.weights.exits": "students.distill.weights.early_exits",
    "students.distill.weights.past": "students.distill.weights.mean_teacher",
    "students.distill.weights.transfer": "students.distill.weights.attention_transfer",
    "students.labels": "students.data.labels",
    "students.quantize.aware": "students.quantize.qat_epochs",
    "students.quantize.group": "students.quantize.group_size",
    "students.tiers.keep_every": "students.tiers.layers",
    "students.tiers.ratio": "students.tiers.removed_fraction",
    "training.proximal": "training.proximal_mu",
}
"""Path of the old key, without indices of lists -> path of the new key."""
