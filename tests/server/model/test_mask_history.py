"""The newest mask goes down whole, or as its difference from one that the client has."""

import numpy as np

from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set
from fedpress.server.model.mask_history import KEPT, MaskHistory

LAYOUT = Layout((TensorSpec("a", (20, 10), "float32"), TensorSpec("c", (5, 20), "float32")))
N = LAYOUT.size
FIRST = dynamic_sparsity.random_mask(LAYOUT, 0.3, 1, "layer")


def test_a_mask_goes_down_whole_or_as_what_has_changed() -> None:
    assert MaskHistory(None).coded(None) is None
    history, masks = MaskHistory(FIRST), [FIRST]
    for _ in range(KEPT + 2):
        flags = masks[-1].flags.copy()
        flags[[int(np.flatnonzero(flags)[3]), int(np.flatnonzero(~flags)[5])]] ^= True
        masks.append(Mask.of(flags))
        history.change(masks[-1])
    newest = masks[-1]
    assert history.version == len(masks) and history.coded(len(masks)) == b""
    whole = history.coded(None)
    assert whole is not None
    assert history.coded(1) == whole  # too long ago: that mask is not kept
    for known in range(len(masks) - KEPT + 1, len(masks)):
        coded = history.coded(known)
        assert coded is not None and len(coded) < 0.7 * len(whole)
        np.testing.assert_array_equal(position_set.unpack(coded, N, masks[known - 1].positions), newest.positions)
    np.testing.assert_array_equal(position_set.unpack(whole, N), newest.positions)


def test_a_history_that_was_restored_codes_as_before() -> None:
    history = MaskHistory(FIRST)
    for seed in range(2, 4):
        history.change(dynamic_sparsity.random_mask(LAYOUT, 0.3, seed, "layer"))
    again = MaskHistory(None)
    again.restore(history.state())
    assert (again.version, again.mask) == (3, history.mask)
    assert [again.coded(known) for known in (None, 1, 2, 3)] == [history.coded(known) for known in (None, 1, 2, 3)]
