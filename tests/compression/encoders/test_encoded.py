"""What `encode` returns: the decoded update is what the receiver reads, and an addend is as good as adding before."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.compression.encoders import (
    cafe,
    decay,
    ef21,
    encoder,
    error_feedback,
    float16_residual,
    momentum,
    powersgd,
    recipes,
    selection,
    sign_sgd,
    wrappers,
)
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.quantizers import eden, qsgd, terngrad
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Factors, LowRank, Sparse, Update
from fedpress.compression.wire import payloads, values

N = 90
LAYOUT = Layout((TensorSpec("a", (8, 10), "float32"), TensorSpec("b", (), "float32"), TensorSpec("c", (9,), "float32")))
TOP = encoder.sparse(selection.top_k(0.1), values.STEP)

ENCODERS: dict[str, Encoder[Any]] = {
    **{f"recipe {name}": recipe.make(*[0.1][: "density" in recipe.takes]) for name, recipe in recipes.RECIPES.items()},
    **{f"sparse {name}": encoder.sparse(selection.top_k(0.1), values.by_name(name)) for name in values.names()},
    **{f"dense {name}": encoder.dense(values.by_name(name)) for name in values.names()},
    **{f"seeded {name}": encoder.seeded(0.1, values.by_name(name)) for name in values.names()},
    "sparse of everything": encoder.sparse(selection.top_k(1.0), values.FLOAT32),
    "sparse by layer": encoder.sparse(selection.top_k(0.1, scope="layer"), values.LOG4),
    "sparse correlated": encoder.sparse(selection.correlated(0.1), values.TERNARY),
    "sparse threshold": encoder.sparse(selection.threshold(0.5), values.STEP),
    "seeded of everything": encoder.seeded(1.0, values.STEP),
    **{f"qsgd {bits}": encoder.quantized(qsgd.scheme(bits)) for bits in (2, 8)},
    **{f"eden {bits}": encoder.quantized(eden.scheme(bits)) for bits in (1, 2, 3, 4)},
    "terngrad clipped": encoder.quantized(terngrad.scheme(2.5)),
    "signs": sign_sgd.signs(),
    "powersgd": powersgd.powersgd(3),
    "cafe": cafe.aggregate_feedback(TOP),
    "ef21": ef21.ef21(TOP),
    "ef21 dense": ef21.ef21(encoder.dense()),
    "momentum": momentum.momentum_corrected(TOP),
    "momentum dense": momentum.momentum_corrected(encoder.dense(values.INT8)),
    "clipped": wrappers.clipped(TOP, 0.5),
    "warmed up": wrappers.warmed_up(lambda density: encoder.sparse(selection.top_k(density), values.INT4), 1, 0.1, 2),
    "error feedback": error_feedback.error_feedback(TOP),
    "error feedback, dense": error_feedback.error_feedback(encoder.dense()),
    "error feedback twice": error_feedback.error_feedback(error_feedback.error_feedback(TOP)),
    "error feedback of all": error_feedback.error_feedback(ef21.ef21(momentum.momentum_corrected(TOP))),
    "step ahead": error_feedback.step_ahead(error_feedback.error_feedback(TOP)),
    "decayed": decay.decayed(error_feedback.error_feedback(TOP), 0.5, max_age=2),
    "half precision": float16_residual.half_precision(error_feedback.error_feedback(TOP)),
}
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def arrays(update: Update) -> list[np.ndarray]:
    if isinstance(update, LowRank):
        return [a for block in update.blocks for a in (block if isinstance(block, Factors) else (block,))]
    return [update.positions, update.values] if isinstance(update, Sparse) else [update.values]


def leaves(state: Any) -> Iterable[np.ndarray]:
    if isinstance(state, np.ndarray):
        yield state
    elif state is not None:
        for part in state:
            yield from leaves(part)


def side_info_of(round: int) -> SideInfo:
    predictor = Dense(np.linspace(-1, 1, N).astype(np.float32)) if round else None
    return SideInfo(LAYOUT, round, np.arange(round % 2, N, 4), predictor)


def drawn(seed: int) -> Vector:
    random = np.random.default_rng(seed)
    kinds = (random.standard_normal(N), random.integers(-2, 3, N), np.zeros(N), 10 ** random.uniform(-30, 30, N))
    return np.asarray(kinds[seed % 4]).astype(np.float32)


@every_encoder
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_decoded_is_what_the_receiver_reads_bit_for_bit(name: str, seed: int) -> None:
    chosen = ENCODERS[name]
    state = chosen.init(LAYOUT)
    for round in range(4):
        update, side_info = drawn(seed + round), side_info_of(round)
        payload, decoded, state = chosen.encode(update, state, side_info, seed + round)
        received = payloads.decode(payload, side_info)
        assert type(decoded) is type(received) and decoded.size == received.size == N
        for ours, theirs in zip(arrays(decoded), arrays(received), strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
        assert decoded.dense().tobytes() == received.dense().tobytes()
        assert not any(np.shares_memory(array, update) for array in arrays(decoded))
        state = chosen.acknowledge(state, round % 2 > 0)


@every_encoder
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_an_addend_is_as_good_as_adding_before(name: str, seed: int) -> None:
    chosen = ENCODERS[name]
    update, addend, side_info = drawn(seed), drawn(seed + 1), side_info_of(seed % 2)
    total, unchanged = update + addend, addend.copy()
    expected = chosen.encode(total.copy(), chosen.init(LAYOUT), side_info, seed)
    encoded = chosen.encode(update, chosen.init(LAYOUT), side_info, seed, addend)
    assert encoded.payload == expected.payload
    assert encoded.decoded.dense().tobytes() == expected.decoded.dense().tobytes()
    assert [leaf.tobytes() for leaf in leaves(encoded.state)] == [leaf.tobytes() for leaf in leaves(expected.state)]
    # The sum is the caller's: nobody else holds it or has written to it.
    assert update.tobytes() == total.tobytes() and addend.tobytes() == unchanged.tobytes()
    assert not any(np.shares_memory(leaf, update) for leaf in leaves(encoded.state))
