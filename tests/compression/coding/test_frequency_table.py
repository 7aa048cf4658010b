"""Tables of codes: any table gives a distribution, any codes get one that fits, and it costs next to nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedpress.compression.coding import frequency_table, rans

CODES = st.integers(1, 127).flatmap(
    lambda top: arrays.arrays(np.int64, st.integers(0, 60), elements=st.integers(-top, top))
)


@settings(max_examples=30)
@given(CODES)
def test_every_code_that_occurs_has_a_frequency(codes: NDArray[np.int64]) -> None:
    table = frequency_table.fit(codes)
    again, length = frequency_table.read(table.data + b"more")
    assert length == len(table.data) and again.data == table.data
    np.testing.assert_array_equal(again.frequencies, table.frequencies)
    assert table.frequencies.sum() == rans.TOTAL and len(table.frequencies) == 2 * table.top + 1
    assert (table.frequencies[codes + table.top] > 0).all()
    assert table.top == np.abs(codes).max(initial=0)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_distribution_or_refused(data: bytes) -> None:
    try:
        table, length = frequency_table.read(data)
    except rans.CodeError:
        return
    assert length <= len(data) and table.frequencies.sum() == rans.TOTAL and (table.frequencies >= 0).all()


def drawn(n: int) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(0)
    return {
        "8 bits, normal": random.normal(size=n) * 35,
        "8 bits, heavy tails": random.laplace(size=n) * 18,
        "4 bits, normal": random.normal(size=n) * 2.2,
        "4 bits, most of them zero": random.laplace(size=n) * 0.5,
        "4 bits, uniform": random.uniform(-7, 7, n),
        "4 bits, not symmetric": random.normal(size=n) * 2 + 1,
        "2 bits": random.normal(size=n) * 0.5,
    }


@pytest.mark.parametrize("kind", drawn(1))
def test_codes_and_table_take_at_most_1_percent_more_than_the_entropy(kind: str) -> None:
    most = 2 ** (int(kind[0]) - 1) - 1
    codes = np.clip(np.rint(drawn(10_000)[kind]), -most, most).astype(np.int64)
    table = frequency_table.fit(codes)
    data = rans.encode(codes + table.top, [len(codes)], [table.frequencies])
    _, counts = np.unique(codes, return_counts=True)
    entropy = -(counts @ np.log2(counts / len(codes))) / 8
    assert len(data) + len(table.data) <= 1.01 * entropy


def test_sides_are_kept_apart_where_they_differ() -> None:
    table = frequency_table.fit(np.array([0, 1, 1, 1, 2, -1] * 50))
    assert table.data[0] == 2 and table.frequencies[0] == 0 < table.frequencies[1] < table.frequencies[3]
    assert frequency_table.fit(np.array([0, 1, -1] * 50)).data[0] == 128 + 1


@pytest.mark.parametrize(("data", "message"), [("", "missing"), ("8200", "takes 4"), ("81ffff", "never comes")])
def test_each_fault_is_refused(data: str, message: str) -> None:
    with pytest.raises(rans.CodeError, match=message):
        frequency_table.read(bytes.fromhex(data))


def test_the_frequencies_are_these() -> None:
    """Whole numbers on every machine: a table of 8 bits, interpolated between its knots."""
    table, _ = frequency_table.read(bytes([127 + 128, *range(0, 29 * 5, 5)]))
    assert table.frequencies[[0, 1, 3, 60, 100, 126, 127]].tolist() == [4, 5, 6, 16, 51, 953, 1312]
