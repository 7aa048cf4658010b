"""Seeds and pseudorandom numbers that are the same in every process, on every machine and in every language."""

import hashlib
import operator

import numpy as np
from numpy.typing import NDArray


def derive(*parts: str | int) -> int:
    """Return a seed of 63 bits for one purpose, such as `derive(federation, seed, round, client, "batches")`.

    It comes from SHA-256, not from `hash()`, which differs between processes. Each part is hashed with its type and its
    length, so that no two lists of parts are joined to the same text.

    Raises:
        TypeError: A part is neither a text nor an integer.

    >>> derive("run", 7, "batches")
    5076444500786594853
    >>> derive("a", "bc") == derive("ab", "c") or derive(1) == derive("1")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
        encoded = text.encode()
        digest.update(f"{kind}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def split_mix(seed: int, first: int, count: int) -> NDArray[np.uint64]:
    """Return numbers `first` to `first + count - 1` of SplitMix64, uint64, shape (count,).

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; docs/reference/wire.md has the
    arithmetic.

    Args:
        seed: 0 to 2^64 - 1.
        first: Index of the first number, from 0.
        count: Length of the result.

    >>> [f"{number:016x}" for number in split_mix(1234567, 0, 2)]
    ['599ed017fb08fc85', '2c73f08458540fa5']
    """
    mixed = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(seed)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
