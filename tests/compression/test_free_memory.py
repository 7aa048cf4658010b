"""What is free in a process is free for others."""

import os
import sys
from typing import Any

import numpy as np
import pytest

from fedpress.compression import free_memory
from fedpress.simulations.benchmarks import memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_cycle_holds_in_small_blocks_is_given_back() -> None:
    free_memory.give_back()
    before = memory.resident(os.getpid())
    cycle: list[Any] = [np.ones(10_000) for _ in range(2000)]  # 160 MB
    pinned = [np.ones(10_000) for _ in range(2)]  # after them, so that the heap cannot shrink from its end
    cycle.append(cycle)
    assert memory.resident(os.getpid()) > before + 140e6
    del cycle
    free_memory.give_back()
    assert memory.resident(os.getpid()) < before + 20e6 and len(pinned) == 2
