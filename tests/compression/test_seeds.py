"""Seeds: stable, unambiguous, of 63 bits."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import seeds

PARTS = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


@given(PARTS)
def test_a_seed_has_63_bits(parts: list[str | int]) -> None:
    assert 0 <= seeds.derive(*parts) < 2**63


@given(PARTS, PARTS)
def test_other_parts_give_another_seed(one: list[str | int], other: list[str | int]) -> None:
    assert (seeds.derive(*one) == seeds.derive(*other)) == (one == other)


def test_split_mix_gives_the_published_numbers() -> None:
    """The test vector of Vigna's splitmix64.c that other implementations use, and any part of the sequence."""
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert seeds.split_mix(1234567, 0, 5).tolist() == numbers
    assert seeds.split_mix(1234567, 3, 2).tolist() == numbers[3:]


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from fedpress.compression import seeds; print(seeds.derive('run', 7, 'batches'))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "5"},
    )
    assert int(out.stdout) == seeds.derive("run", 7, "batches") == 5076444500786594853


def test_numpy_integers_count_as_integers_and_floats_are_refused() -> None:
    assert seeds.derive(np.int64(3)) == seeds.derive(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        seeds.derive(3.0)  # type: ignore[arg-type]
