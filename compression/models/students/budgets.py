"""Costs of models in the units of budgets, and pruning a teacher until it fits."""

from __future__ import annotations

from torch import nn

from fedpress.compression.models import cost
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.inputs import Batch
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students.settings import UNITS, Budget


def most(budget: Budget, teacher: nn.Module) -> float:
    """Return the largest cost of a student of this teacher, in the budget's unit.

    Args:
        budget: Budget of a kind other than `removed_fraction`.
        teacher: Teacher, of whose parameters a fraction is taken.
    """
    if isinstance(budget.parameters, float):
        return int(budget.parameters * structural.parameters_of(teacher))
    return float(getattr(budget, budget.kind))


def cost_of(
    model: nn.Module, example_input: Batch, budget: Budget, quantization: Quantization = Quantization()
) -> float:
    """Return the cost of a model in the budget's unit; of a bundle, the upper bound on its size.

    Args:
        model: Model on the CPU.
        example_input: Batch of inputs, (N, ...).
        budget: Budget of a kind other than `removed_fraction`.
        quantization: For `bundle_bytes`: quantization of the weights.
    """
    if budget.parameters is not None:
        return structural.parameters_of(model)
    if budget.bundle_bytes is not None:
        return writer.largest_bytes(model, example_input, quantization)
    if budget.flops is not None:
        return structural.flops_of(model, example_input)
    costs = cost.cost_of(model, example_input)
    return costs.memory_bytes if budget.device is None else costs.latency_ms(budget.device)


def student_of(
    teacher: nn.Module,
    example_input: Batch,
    budget: Budget,
    criterion: Criterion = importance.DEFAULT,
    quantization: Quantization = Quantization(),
) -> nn.Module:
    """Return the largest pruned version of the teacher within the budget, not yet distilled.

    A budget of bytes is met by the file without entropy coding, whose length does not depend on the weights; the final
    file can only be shorter.

    Args:
        teacher: Model to prune; untouched.
        example_input: Batch of inputs, (N, ...).
        budget: Budget of the student.
        criterion: Order of removal.
        quantization: For `bundle_bytes`: quantization of the weights.

    Raises:
        BudgetError: Even one channel in every layer is too much.
        PruneError: The model cannot be pruned.
    """
    limit = most(budget, teacher)
    return structural.prune_while(
        teacher,
        example_input,
        lambda student: cost_of(student, example_input, budget, quantization),
        limit,
        f"{limit:,.10g} {UNITS[budget.kind]}",
        criterion=criterion,
    )
