"""The student for a budget: the teacher, pruned until it fits. It starts from the teacher's weights."""

from __future__ import annotations

from torch import Tensor, nn

from fedpress.compression.models import cost
from fedpress.compression.models.bundles import writer
from fedpress.compression.models.pruning import importance, structural
from fedpress.compression.models.pruning.importance import Criterion
from fedpress.compression.models.quantization.settings import Quantization
from fedpress.compression.models.students.settings import UNITS, Budget


def most(budget: Budget, teacher: nn.Module) -> float:
    """The most that a student of this teacher may cost, in the budget's unit.

    Args:
        budget: Of another kind than `removed_fraction`.
        teacher: Whose parameters a fraction is of.
    """
    if isinstance(budget.parameters, float):
        return int(budget.parameters * structural.parameters_of(teacher))
    return float(getattr(budget, budget.kind))


def cost_of(
    model: nn.Module, example_input: Tensor, budget: Budget, quantization: Quantization = Quantization()
) -> float:
    """What a model costs, in the budget's unit; of a bundle, the most that it can come to.

    Args:
        model: On the CPU.
        example_input: A batch as the model is called with, (N, ...).
        budget: Of another kind than `removed_fraction`.
        quantization: For `bundle_bytes`: how the file's weights are written.
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
    example_input: Tensor,
    budget: Budget,
    criterion: Criterion = importance.DEFAULT,
    quantization: Quantization = Quantization(),
) -> nn.Module:
    """Return the largest pruned version of the teacher within the budget, not yet distilled.

    A budget of bytes is met by the file without its entropy coding, whose length does not depend on the weights: the
    file as it is served, after distillation, can only be shorter.

    Args:
        teacher: The model to prune; untouched.
        example_input: A batch as the teacher is called with, (N, ...).
        budget: What the student may cost.
        criterion: What is removed first.
        quantization: For `bundle_bytes`: how the file's weights are written.

    Raises:
        BudgetError: Even one channel in every layer is too much.
        PruneError: The model cannot be pruned.
    """
    limit = most(budget, teacher)
    return structural.prune_while(
        teacher,
        example_input,
        lambda student: cost_of(student, example_input, budget, quantization) <= limit,
        f"{limit:,.10g} {UNITS[budget.kind]}",
        criterion=criterion,
    )
