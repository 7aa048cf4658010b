"""rANS: what is written is read again, near the entropy, and bytes that no encoder writes are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.coding import rans
from fedpress.compression.coding.rans import TOTAL, Frequencies, Symbols


def model(weights: list[int]) -> Frequencies:
    """Frequencies in these proportions; none of those above zero becomes zero."""
    given = np.array(weights, np.int64)
    found = given * (TOTAL - len(given)) // max(1, int(given.sum())) + (given > 0)
    found[int(np.argmax(given))] += TOTAL - found.sum()
    return found


MODELS = st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any).map(model)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Symbols, list[int], list[Frequencies]]:
    models = draw(st.lists(MODELS, max_size=4))
    counts = [draw(st.integers(0, 40)) for _ in models]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    runs = [random.choice(np.flatnonzero(one), count) for one, count in zip(models, counts, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *runs]), counts, models


@given(messages())
def test_what_is_written_is_read_again(message: tuple[Symbols, list[int], list[Frequencies]]) -> None:
    symbols, counts, models = message
    data = rans.encode(symbols, counts, models)
    np.testing.assert_array_equal(rans.decode(data, counts, models), symbols)


@given(messages(), st.data())
def test_a_changed_byte_gives_other_symbols_or_is_refused(
    message: tuple[Symbols, list[int], list[Frequencies]], data: st.DataObject
) -> None:
    symbols, counts, models = message
    coded = bytearray(rans.encode(symbols, counts, models))
    coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = rans.decode(bytes(coded), counts, models)
    except rans.CodeError:
        return
    assert (found != symbols).any()


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_the_length_is_the_entropy_within_half_a_percent(n: int) -> None:
    frequencies = model([int(1e6 * np.exp(-abs(code) / 2)) for code in range(-7, 8)])
    symbols = np.random.default_rng(0).choice(15, n, p=frequencies / TOTAL)
    data = rans.encode(symbols, [n], [frequencies])
    bits = rans.cost(np.bincount(symbols, minlength=15), frequencies)
    assert bits / 8 <= len(data) < 1.005 * bits / 8


def test_each_fault_is_refused() -> None:
    models, counts = [model([3, 1, 1])], [100]
    symbols = np.arange(100) % 3
    data = rans.encode(symbols, counts, models)
    for damaged, message in [
        (b"", "take 5"),
        (data[:4], "take 5"),
        (data[:-1], "even number"),
        (data[:-2], "end before"),
        (data + bytes(2), "left over"),
        (bytes(5) + data[5:], "begins with a state"),
    ]:
        with pytest.raises(rans.CodeError, match=message):
            rans.decode(damaged, counts, models)


@pytest.mark.parametrize("symbols", [[0, 3], [-1, 0], [0], [0, 1]])
def test_symbols_outside_of_the_distribution_are_not_written(symbols: list[int]) -> None:
    with pytest.raises(ValueError, match="outside|frequency 0"):
        rans.encode(np.array(symbols), [2], [np.array([TOTAL - 1, 0, 1])])


def test_frequencies_must_add_up() -> None:
    with pytest.raises(ValueError, match="16384"):
        rans.encode(np.array([0]), [1], [np.array([1, 1])])
    with pytest.raises(ValueError, match="16384"):
        rans.decode(bytes(5), [1], [np.array([-1, TOTAL + 1])])


def test_the_bytes_are_these() -> None:
    """Every machine writes and reads the same."""
    data = rans.encode(np.array([2, 0, 1, 2] * 5), [8, 12], [model([1, 2, 5]), model([1, 1, 1])])
    assert data.hex() == "d51e0aa1d4e321"
