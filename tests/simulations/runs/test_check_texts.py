"""Errors of a task's code name the task, the place in it, and what was given."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpress.compression.errors import FedpressError
from fedpress.simulations.runs import check_texts


def test_an_error_names_the_task_and_the_line_of_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef wide():\n    return torch.ones(2, 3) @ torch.ones(2, 3)\n")
    code: dict[str, object] = {}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), code)
    with pytest.raises(check_texts.CheckError, match=r"'mine': model\(\) raised RuntimeError: .* \(mine.py, line 3\)"):
        with check_texts.by_task("mine", "model()"):
            code["wide"]()  # type: ignore[operator]


@pytest.mark.parametrize("error", [FedpressError("said already"), ModuleNotFoundError("timm")])
def test_an_error_that_says_enough_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, check_texts.by_task("mine", "model()"):
        raise error
    assert raised.value is error


def test_the_first_few_of_many_things_are_named() -> None:
    assert check_texts.some([3], "label") == "1 label (3)"
    assert check_texts.some(range(7), "client") == "7 clients (0, 1, 2, 3, 4, ...)"
    assert check_texts.form(torch.ones(2, 3).long()) == "int64 of shape (2, 3)"
    assert check_texts.form([1]) == "a list"
    assert (
        check_texts.first_line(ValueError("\none\ntwo")) == "one" and check_texts.first_line(KeyError()) == "KeyError"
    )


def test_what_a_task_draws_leaves_all_generators_as_they_were() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    with check_texts.drawing(1):
        first = drawn()
    with check_texts.drawing(1):
        assert drawn() == first
    assert states[0] == random.getstate() and states[1] == str(np.random.get_state())
    assert torch.equal(states[2], torch.get_rng_state())
