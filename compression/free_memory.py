"""Memory that is free inside a process, given back to the system."""

import ctypes
import gc


def give_back() -> None:
    """Collect garbage, and let the C library return free memory to the system, so that what is left is in use.

    Models are full of cycles, which Python collects when it gets to it, and glibc keeps freed blocks below 32 MB for
    the next allocation. Before other processes need the memory, both are worth some milliseconds.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Let the C library return free memory to the system, without collecting garbage."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if malloc_trim is not None:
        malloc_trim(0)
