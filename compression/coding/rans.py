"""Symbols of known distribution <-> bytes, within a thousandth of their entropy: range asymmetric numeral systems.

J. Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of
arithmetic coding", arXiv:1311.2540, 2013, section 2.3; interleaved as in F. Giesen, "Interleaved entropy coders",
arXiv:1402.3392, 2014: symbol s belongs to lane s mod L, each lane has a state of its own and all share one string of
words, so that a step over all lanes is a handful of vector operations.

A state is below 2^40 and at least 2^24, and is refilled by 16 bits. Frequencies add up to 2^14. A symbol of frequency
f takes log2(2^14 / f) bits; what comes on top are three bytes a lane and what the whole frequencies are off by. A lane
has 8,192 symbols, so decoding takes at most 8,192 steps whatever the number of symbols is.

Layout: the lanes' last states, 5 bytes each, then the words, 2 bytes each, as the decoder reads them; little-endian.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.int64]
Frequencies = NDArray[np.int64]
"""Frequencies of the symbols 0, 1, ..., K - 1, shape (K,), adding up to `TOTAL`; one of frequency 0 never occurs."""

PRECISION = 14
TOTAL = 1 << PRECISION
STATE_BYTES = 5
_LANE = 8192
_LOWEST = 1 << 24
_WORD = 16


class CodeError(ValueError):
    """Bytes that no encoder writes. Callers turn it into the error of what they were reading."""


def encode(symbols: Symbols, counts: Sequence[int], models: Sequence[Frequencies]) -> bytes:
    """Return the bytes of `symbols`.

    Args:
        symbols: Shape (n,); first `counts[0]` symbols of `models[0]`, then `counts[1]` of `models[1]`, and so on.
        counts: They add up to n.
        models: The distribution of each run.

    Raises:
        ValueError: A symbol has frequency 0 or is outside its distribution, or frequencies do not add up to `TOTAL`.

    >>> models = [np.array([TOTAL - 100, 100]), np.array([TOTAL // 2, TOTAL // 2])]
    >>> data = encode(np.array([0] * 300 + [1, 0]), [300, 2], models)
    >>> len(data), decode(data, [300, 2], models)[-3:]
    (5, array([0, 1, 0]))
    """
    firsts, frequencies, starts = _joined(models)
    sizes = np.repeat([len(model) for model in models], counts)
    if symbols.shape != sizes.shape or (symbols < 0).any() or (symbols >= sizes).any():
        raise ValueError(f"{len(symbols)} symbols for {len(sizes)} places, or one is outside of its distribution")
    places = symbols + np.repeat(firsts, counts)
    if (frequencies[places] == 0).any():
        raise ValueError("a symbol has frequency 0: was the distribution made for others?")
    lanes = _lanes(len(symbols))
    states = np.full(lanes, _LOWEST, np.int64)
    words = []
    for first in reversed(range(0, len(symbols), lanes)):
        step = places[first : first + lanes]
        active = states[: len(step)]
        frequency = frequencies[step]
        full = active >= frequency << (40 - PRECISION)
        words.append((active[full] & 0xFFFF).astype("<u2"))
        active[full] >>= _WORD
        high, low = np.divmod(active, frequency)
        active[:] = (high << PRECISION) + low + starts[step]
    heads = states.astype("<i8").view(np.uint8).reshape(lanes, 8)[:, :STATE_BYTES]
    return heads.tobytes() + b"".join(word.tobytes() for word in reversed(words))


def decode(data: bytes | memoryview, counts: Sequence[int], models: Sequence[Frequencies]) -> Symbols:
    """Return the symbols that `encode` wrote with the same counts and models, int64 (n,).

    Args:
        data: Bytes of any origin.
        counts: Number of symbols of each model. The caller bounds them: symbols of a distribution with a single symbol
            take no bytes.
        models: The distribution of each run.

    Raises:
        CodeError: The bytes are not those of such symbols.
        ValueError: Frequencies do not add up to `TOTAL`.
    """
    firsts, frequencies, starts = _joined(models)
    n = sum(counts)
    lanes = _lanes(n)
    if len(data) < STATE_BYTES * lanes or (len(data) - STATE_BYTES * lanes) % 2:
        raise CodeError(f"there are {len(data)} bytes, {n} symbols take {STATE_BYTES * lanes} and an even number more")
    heads = np.zeros((lanes, 8), np.uint8)
    heads[:, :STATE_BYTES] = np.frombuffer(data, np.uint8, STATE_BYTES * lanes).reshape(lanes, STATE_BYTES)
    states = heads.view("<i8").reshape(lanes).astype(np.int64)
    if (states < _LOWEST).any():
        raise CodeError("a lane begins with a state that no encoder ends with")
    words = np.frombuffer(data, "<u2", -1, STATE_BYTES * lanes).astype(np.int64)
    # Symbols of all distributions in one row: model m has the slots from m * TOTAL on.
    numbers = np.arange(len(models), dtype=np.int64)
    used = np.flatnonzero(frequencies)
    slots = (starts + np.repeat(numbers << PRECISION, [len(model) for model in models]))[used]
    frequencies, starts = frequencies[used], starts[used]
    bases = np.repeat(numbers << PRECISION, counts)
    symbols = np.empty(n, np.int64)
    at = 0
    for first in range(0, n, lanes):
        step = symbols[first : first + lanes]
        active = states[: len(step)]
        slot = active & (TOTAL - 1)
        place = np.searchsorted(slots, slot + bases[first : first + lanes], side="right")
        place -= 1
        step[:] = place
        active >>= PRECISION
        active *= frequencies[place]
        active += slot
        active -= starts[place]
        empty = np.flatnonzero(active < _LOWEST)
        if len(empty):
            refill = words[at : at + len(empty)]
            if len(refill) < len(empty):
                raise CodeError(f"the {len(words)} words end before the {n} symbols do")
            active[empty] = (active[empty] << _WORD) | refill
            at += len(empty)
    if at != len(words) or (states != _LOWEST).any():
        raise CodeError("the states do not end where an encoder begins, or words are left over")
    return used[symbols] - np.repeat(firsts, counts)


def cost(histogram: NDArray[np.int64], model: Frequencies) -> float:
    """Return the length in bits of symbols that occur so often; infinite if one of them has frequency 0.

    Args:
        histogram: Number of occurrences of each symbol, shape (K,).
        model: The distribution, shape (K,).

    >>> cost(np.array([6, 2]), np.array([TOTAL // 2, TOTAL // 2]))
    8.0
    """
    occur = histogram > 0
    if (model[occur] == 0).any():
        return float("inf")
    return float(histogram[occur] @ (PRECISION - np.log2(model[occur])))


def _lanes(n: int) -> int:
    return max(1, -(-n // _LANE))


def _joined(models: Sequence[Frequencies]) -> tuple[NDArray[np.int64], Frequencies, NDArray[np.int64]]:
    """Return the start of each model's symbols in one row of all, and the frequency and first slot of each symbol."""
    if any(model.sum() != TOTAL or (model < 0).any() for model in models):
        raise ValueError(f"the frequencies of a distribution must add up to {TOTAL}")
    firsts = np.cumsum([0, *(len(model) for model in models)])[:-1]
    empty = np.empty(0, np.int64)
    frequencies = np.concatenate([empty, *models])
    starts = np.concatenate([empty, *(np.cumsum(model) - model for model in models)])
    return firsts.astype(np.int64), frequencies, starts
