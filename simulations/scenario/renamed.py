"""Keys that had another name before the first release: whoever uses the old one is told the new one."""

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
    "training.proximal": "training.proximal_mu",
}
"""Path of the old key, without the places in lists -> path of the new one."""
