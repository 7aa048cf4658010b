"""What a student takes over from its teacher is equal to the bit, what it does not is said, and nothing is an error."""

import copy
import logging
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.apps.stacked import Looped
from torch import nn

from fedpress.compression.models import stacks
from fedpress.compression.models.students import inheritance
from fedpress.compression.models.students.inheritance import InheritanceError, inherit, matches
from fedpress.compression.models.transformer import CausalTransformer


def model(depth: int, seed: int, width: int = 8, hidden: int = 8) -> CausalTransformer:
    torch.manual_seed(seed)
    return CausalTransformer(11, 6, width=width, depth=depth, heads=2, hidden=hidden)


def equal(student: nn.Module, teacher: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(student.parameters(), teacher.parameters(), strict=True))


@given(st.integers(1, 5), st.integers(2, 6))
def test_every_second_takes_evenly_spaced_blocks_and_all_that_is_not_in_blocks(few: int, many: int) -> None:
    student, teacher = model(few, seed=1), model(many, seed=0)
    before = copy.deepcopy(student)
    if few >= many:
        with pytest.raises(InheritanceError, match="no list of blocks has one of the same name in the teacher that is"):
            inherit(student, teacher, "every-second")
        return
    learner = inherit(student, teacher, "every-second")
    assert equal(student, before)
    for number, block in enumerate(learner.blocks):
        assert equal(block, teacher.blocks[stacks.spaced(few, many)[number]])
    for part in ("embedding", "positions", "norm", "output"):
        assert equal(getattr(learner, part), getattr(teacher, part))
    assert matches(student, teacher, "every-second").share == 1.0


def test_by_name_takes_what_has_the_same_name_and_shape(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = model(2, seed=1, hidden=6), model(3, seed=0)
    with caplog.at_level(logging.INFO, "flwr"):
        learner = inherit(student, teacher, "by-name")
    assert equal(learner.blocks[1].attention, teacher.blocks[1].attention)
    assert torch.equal(learner.blocks[1].hidden[0].weight, student.blocks[1].hidden[0].weight)
    assert torch.equal(learner.blocks[1].hidden[2].bias, teacher.blocks[1].hidden[2].bias)
    found = matches(student, teacher, "by-name")
    assert found.fresh["blocks.0.hidden.0.bias"] == "(6,), but blocks.0.hidden.0.bias of the teacher is (8,)"
    assert (
        f"a student inherits {len(found.copied)} of its {len(found.copied) + len(found.fresh)} tensors" in caplog.text
    )
    assert f"{100 * found.share:.1f} % of its parameters; fresh: blocks.0.hidden.0.weight" in caplog.text
    assert 0 < found.share < 1


class Other(nn.Module):
    """The same transformer under other names."""

    def __init__(self) -> None:
        super().__init__()
        parts = model(2, seed=3)
        self.words, self.place, self.head = parts.embedding, parts.positions, parts.output
        self.stack = nn.Sequential(
            OrderedDict(
                (f"layer_{n}", nn.ModuleDict({"a": b.attention, "n": b.hidden_norm}))
                for n, b in enumerate(parts.blocks)
            )  # type: ignore[arg-type]
        )


def test_a_map_leads_from_names_to_names() -> None:
    student, teacher = Other(), model(4, seed=0)
    names = {
        "words": "embedding", "head.weight": "output.weight", "stack.layer_0": "blocks.1", "stack.layer_1": "blocks.3",
        "stack.layer_1.a": "blocks.3.attention",
    }  # fmt: skip
    learner = inherit(student, teacher, names)
    assert equal(learner.words, teacher.embedding)
    assert torch.equal(learner.head.weight, teacher.output.weight)
    assert torch.equal(learner.head.bias, student.head.bias) and equal(learner.place, student.place)
    assert equal(learner.stack.layer_1["a"], teacher.blocks[3].attention)
    assert matches(student, teacher, names).fresh["stack.layer_0.a.qkv.weight"] == (
        "the teacher has no blocks.1.a.qkv.weight"
    )
    learner = inherit(
        student, teacher, {"stack.layer_*.a": "blocks.*.attention", "stack.layer_*.n": "blocks.*.hidden_norm"}
    )
    assert equal(learner.stack.layer_1["a"], teacher.blocks[1].attention)
    assert equal(learner.stack.layer_0["n"], teacher.blocks[0].hidden_norm)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"blocks.9": "blocks.0"}, "the student has no tensor called 'blocks.9' or beginning so; expected"),
        ({"blocks.0": "block.0"}, "the teacher has no tensor called 'block.0' .*did you mean 'blocks.0"),
        ({"blocks.*": "blocks.0"}, r"expected as many \* on both sides"),
        ({"blo": "blocks"}, "the student has no tensor called 'blo'"),
    ],
)
def test_entries_of_a_map_that_fit_nothing_are_named(how: dict[str, str], message: str) -> None:
    with pytest.raises(InheritanceError, match=message):
        inherit(model(2, 1), model(4, 0), how)


def test_a_student_that_would_inherit_nothing_is_refused() -> None:
    with pytest.raises(InheritanceError, match="inherit by-name: none of the student's 8 tensors has a counterpart"):
        inherit(Looped(2), model(4, 0), "by-name")
    with pytest.raises(InheritanceError, match="student has layers, the teacher blocks"):
        inherit(Looped(2), model(4, 0), "every-second")


def test_tied_tensors_stay_tied() -> None:
    student, teacher = model(2, seed=1), model(2, seed=0)
    student.output.weight = student.embedding.weight
    learner = inherit(student, teacher, "by-name")
    assert learner.output.weight is learner.embedding.weight
    assert torch.equal(learner.output.weight, teacher.embedding.weight)


def test_what_a_student_inherits_depends_on_names_alone() -> None:
    found = inheritance.matches(model(2, 1), model(4, 0), "every-second")
    assert found.copied["blocks.1.hidden_norm.weight"] == "blocks.3.hidden_norm.weight"
