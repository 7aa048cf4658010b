"""Weights that a student of another architecture takes over from its teacher, by the names of its tensors.

V. Sanh, L. Debut, J. Chaumond, T. Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
lighter", EMC^2 workshop at NeurIPS 2019, section 2: "we initialize the student from the teacher by taking one layer out
of two". Embeddings, norms and heads are taken over likewise, where names and shapes agree.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from logging import getLogger
from typing import NamedTuple

from torch import Tensor, nn

from fedpress.compression import suggest
from fedpress.compression.errors import FedpressError
from fedpress.compression.models import architecture, stacks
from fedpress.compression.models.students.settings import Inherit


class InheritanceError(FedpressError, ValueError):
    """A student inherits nothing of its teacher, or a part of the map fits no name."""


class Inherited(NamedTuple):
    """What a student has taken over.

    Attributes:
        copied: Names of the teacher's tensors by those of the student's that took them over.
        fresh: Names of the student's tensors that keep their own weights, with the reason.
        share: Fraction of the student's parameters that were taken over.
    """

    copied: dict[str, str]
    fresh: dict[str, str]
    share: float


def inherit(student: nn.Module, teacher: nn.Module, how: Inherit) -> nn.Module:
    """Return a copy of a student with the weights of its teacher; the log says how many it took over.

    >>> teacher = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> student = nn.Sequential(nn.Linear(2, 1))
    >>> inherit(student, nn.Sequential(nn.Linear(2, 1)), "by-name")[0].weight.shape
    torch.Size([1, 2])

    Args:
        student: The student; untouched.
        teacher: The teacher; untouched.
        how: `by-name`: tensors of the same name and shape; `every-second`: likewise, and of each list of blocks that is
            shorter in the student evenly spaced ones: of six blocks, for three, the first, third and last; or names of
            the student with those of the teacher, where `*` stands for any text, such as
            {"layers.0": "encoder.layer.0", "*.ff": "*.output"}: a name is replaced where the map has it or the
            beginning of it up to a point, by its longest entry; other names stay as they are.

    Raises:
        InheritanceError: Nothing is taken over, or an entry of the map matches nothing.
    """
    learner = copy.deepcopy(student)
    taken = matches(learner, teacher, how)
    own, theirs = architecture.tensors(learner), architecture.tensors(teacher)
    for name, source in taken.copied.items():
        own[name].copy_(theirs[source])
    left = ", ".join(list(taken.fresh)[:3]) + (", ..." if len(taken.fresh) > 3 else "")
    getLogger("flwr").info(
        "a student inherits %d of its %d tensors, %.1f %% of its parameters%s",
        len(taken.copied), len(own), 100 * taken.share, f"; fresh: {left}" if left else "",
    )  # fmt: skip
    return learner


def matches(student: nn.Module, teacher: nn.Module, how: Inherit) -> Inherited:
    """Return what a student may take over from a teacher, as `inherit` does.

    Args:
        student: The student.
        teacher: The teacher.
        how: As for `inherit`.

    Raises:
        InheritanceError: As for `inherit`.
    """
    own, theirs = architecture.tensors(student), architecture.tensors(teacher)
    rules = _spaced(student, teacher) if how == "every-second" else how if isinstance(how, Mapping) else {}
    if isinstance(how, Mapping):
        _check(how, own, theirs)
    copied: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for name, tensor in own.items():
        source = _source(name, rules)
        if source not in theirs:
            fresh[name] = f"the teacher has no {source}"
        elif theirs[source].shape != tensor.shape:
            fresh[name] = f"{tuple(tensor.shape)}, but {source} of the teacher is {tuple(theirs[source].shape)}"
        else:
            copied[name] = source
    parameters = dict(student.named_parameters())
    if not copied.keys() & parameters.keys():
        name, reason = next(iter(fresh.items()), ("the student", "has no tensors"))
        raise InheritanceError(
            f"inherit {how if isinstance(how, str) else dict(how)}: none of the student's {len(own)} tensors has a"
            f" counterpart of the same name and shape, such as {name}: {reason}. Give a map from the student's names to"
            " the teacher's, or leave inherit out"
        )
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    share = sum(size for name, size in sizes.items() if name in copied) / sum(sizes.values())
    return Inherited(copied, fresh, share)


def _spaced(student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """Return the map of the blocks of lists that are shorter in the student."""
    ours, theirs = architecture.block_lists(student), architecture.block_lists(teacher)
    shorter = {
        path: (len(ours[path]), len(theirs[path]))
        for path in ours
        if path in theirs and len(ours[path]) < len(theirs[path])
    }
    if not shorter:
        raise InheritanceError(
            "inherit every-second: no list of blocks has one of the same name in the teacher that is longer. The"
            f" student has {', '.join(ours) or 'none'}, the teacher {', '.join(theirs) or 'none'}: give a map of"
            " names, or by-name"
        )
    rules: dict[str, str] = {}
    for path, (few, many) in shorter.items():
        of_student = [name for name, _ in ours[path].named_children()]
        of_teacher = [name for name, _ in theirs[path].named_children()]
        start = f"{path}." if path else ""
        rules |= {f"{start}{of_student[i]}": f"{start}{of_teacher[j]}" for i, j in enumerate(stacks.spaced(few, many))}
    return rules


def _source(name: str, rules: Mapping[str, str]) -> str:
    """Return the name of a tensor in the teacher."""
    for rule in sorted(rules, key=len, reverse=True):
        if found := _pattern(rule).match(name):
            texts = (*found.groups(), "")
            return (
                "".join(part + text for part, text in zip(rules[rule].split("*"), texts, strict=True))
                + name[found.end() :]
            )
    return name


def _pattern(rule: str) -> re.Pattern[str]:
    """Return the expression of a rule, which ends at a point or at the end of a name."""
    return re.compile("(.*)".join(map(re.escape, rule.split("*"))) + r"(?=\.|$)")


def _check(how: Mapping[str, str], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for rule, source in how.items():
        if rule.count("*") != source.count("*"):
            raise InheritanceError(f"inherit: {rule!r}: {source!r}: expected as many * on both sides")
        for side, pattern, names in (("student", rule, own), ("teacher", source, theirs)):
            if not any(_pattern(pattern).match(name) for name in names):
                parts = {".".join(name.split(".")[: pattern.count(".") + 1]) for name in names}
                raise InheritanceError(
                    f"inherit: the {side} has no tensor called {pattern!r} or beginning so; expected"
                    f" {suggest.choices(sorted(parts), pattern)}"
                )
