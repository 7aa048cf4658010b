"""Mutual distillation: the ensemble of the tiers' models teaches the global model, which teaches each of them.

T. Lin, L. Kong, S. U. Stich, M. Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF),
NeurIPS 2020, section 3 and algorithm 3: groups of clients with architectures of their own, whose models are fused by
their answers on unlabeled data. There the ensemble teaches every group; here it teaches the largest model, and that
one teaches the others, as a student learns more from one good teacher, which need not share its architecture.
D. Li, J. Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", 2019: the same with public data.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedpress.compression import seeds
from fedpress.compression.models.distillation.distill import distill
from fedpress.compression.models.distillation.teachers import LAST, Ensemble
from fedpress.compression.models.inputs import Inputs
from fedpress.compression.models.step import Teacher
from fedpress.server.fusion.settings import Teaching


def teach(
    whole: nn.Module,
    tiers: Sequence[nn.Module],
    inputs: Inputs,
    settings: Teaching,
    *,
    trained: bool,
    seed: int,
    class_axis: int = LAST,
) -> list[nn.Module]:
    """Return the global model and those of the tiers after the distillation; the given ones are untouched.

    Args:
        whole: The global model.
        tiers: Models of the tiers, at least one.
        inputs: Proxy data (N, ...), without labels.
        settings: Settings of the distillation.
        trained: Whether clients train the global model, which is then one of the ensemble.
        seed: Seed of the order of the examples.
        class_axis: Axis of the models' outputs along which the classes are.

    Raises:
        ValueError: There are no inputs.
        TeacherError: The models answer in different forms.
    """
    models = [whole, *tiers] if trained else list(tiers)
    ensemble = Ensemble(lambda: models, settings.combine, class_axis=class_axis)

    def learn(teacher: nn.Module | Teacher, model: nn.Module, number: int) -> nn.Module:
        chosen = seeds.derive("teach", seed, number)
        return distill(teacher, model, inputs, settings.distillation, class_axis=class_axis, seed=chosen)

    taught = learn(ensemble, whole, 0)
    return [taught] + [learn(taught, tier, number) for number, tier in enumerate(tiers, start=1)]
