"""Seeds that are the same in every process and on every machine."""

import hashlib
import operator


def derive(*parts: str | int) -> int:
    """Return a seed of 63 bits for what `parts` name, such as `derive(federation, seed, round, client, "batches")`.

    From SHA-256, never from `hash()`, which differs between processes. Each part goes in with its type and its
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
