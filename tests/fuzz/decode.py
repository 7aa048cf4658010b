"""Fuzz `payloads.decode`, guided by coverage: `make fuzz`, with libFuzzer's flags in ARGS. See docs/how-to/fuzzing.md.

What an input is taken for stands in tests/compression/aimed.py, what is held of it in laws.py beside that; Hypothesis
uses both as well.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

COMPARED_BYTES, COMPARED_SIZE = 400, 1000
"""Payloads that are longer, or of larger vectors, are not read by the reference decoder, which is slow."""


def target() -> Callable[[bytes], None]:
    """Return the function that is fuzzed."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.compression import aimed, laws

    def run(data: bytes) -> None:
        payload, receiver = aimed.aimed(data)
        update = laws.decoded(payload, receiver)
        # What takes many times as long as decoding is done for some payloads, chosen by their checksums.
        if update is not None and payload[18] < 16:
            laws.said_again(update, receiver)
        if payload[19] < 32 and len(payload) <= COMPARED_BYTES and receiver.layout.size <= COMPARED_SIZE:
            laws.agreed(payload, receiver)

    return run


def main() -> None:
    import atheris

    warnings.simplefilter("error")  # a server may run so, and a warning is no refusal
    with atheris.instrument_imports(include=["fedpress.compression"], enable_loader_override=False):
        run = target()
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
