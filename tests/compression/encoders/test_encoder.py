"""Encoders: the right entries get through, on every size of vector, and on the update of a real model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression import errors
from fedpress.compression.encoders import encoder, error_feedback, selection, wrappers
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.tensors.flatten import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, positions, values

FORMATS = [values.by_name(name) for name in values.names()]
every_format = pytest.mark.parametrize("format", FORMATS, ids=values.names())


def shared_of(*shapes: tuple[int, ...]) -> SideInfo:
    return SideInfo(Layout(tuple(TensorSpec(str(index), shape, "float32") for index, shape in enumerate(shapes))))


@every_format
@given(seed=st.integers(0, 2**32), n=st.integers(0, 200), density=st.floats(0, 1, exclude_min=True))
def test_a_sparse_payload_says_the_selected_entries(
    format: values.ValueFormat, seed: int, n: int, density: float
) -> None:
    update = np.random.default_rng(seed).integers(-9, 10, n).astype(np.float32)
    shared, select = shared_of((n,)), selection.top_k(density)
    payload, _, state = encoder.sparse(select, format).encode(update, None, shared, seed)
    said = encoder.decode(payload, shared).sparse()
    chosen = select(update, shared, seed)
    assert state is None
    np.testing.assert_array_equal(said.positions, chosen)
    np.testing.assert_array_equal(said.values, format.unpack(format.pack(update[chosen]), len(chosen)))


@every_format
@given(seed=st.integers(0, 2**32), n=st.integers(0, 200))
def test_a_dense_payload_says_every_entry(format: values.ValueFormat, seed: int, n: int) -> None:
    update = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    payload, *_ = encoder.dense(format).encode(update, None, shared_of((n,)), seed)
    said = encoder.decode(payload, shared_of((n,)))
    assert isinstance(said, Dense)
    assert len(payload) == payloads.HEADER_BYTES + format.length(n) or format.varies and n
    np.testing.assert_array_equal(said.values, format.unpack(format.pack(update), n))


@every_format
@pytest.mark.parametrize("shapes", [(), ((0,),), ((),), ((), (0, 3)), ((1,),), ((2, 3), (), (4,))])
def test_every_size_of_vector_zero_or_not(format: values.ValueFormat, shapes: tuple[tuple[int, ...], ...]) -> None:
    shared = shared_of(*shapes)
    n = shared.layout.size
    for select in (selection.top_k(0.01), selection.top_k(0.01, scope="layer"), selection.correlated(0.01)):
        for sparse in (encoder.sparse(select, format), error_feedback.error_feedback(encoder.sparse(select, format))):
            nothing, *_ = sparse.encode(np.zeros(n, np.float32), sparse.init(shared.layout), shared, 0)
            assert len(nothing) == payloads.HEADER_BYTES + (format.length(0) if n else 0)
            assert encoder.decode(nothing, shared).count == 0
            payload, *_ = sparse.encode(np.ones(n, np.float32), sparse.init(shared.layout), shared, 0)
            said = encoder.decode(payload, shared)
            assert said.count == min(n, 1) or n > 1
            np.testing.assert_allclose(said.values, 1, rtol=1e-6)


@every_format
@given(seed=st.integers(0, 2**70), n=st.integers(0, 200), density=st.floats(0, 1, exclude_min=True))
def test_a_seeded_payload_says_the_entries_that_the_seed_draws(
    format: values.ValueFormat, seed: int, n: int, density: float
) -> None:
    update = np.random.default_rng(seed).integers(-3, 4, n).astype(np.float32)  # a seventh of them are zero
    shared, k = shared_of((n,)), min(n, max(1, round(density * n)))
    payload, _, state = encoder.seeded(density, format).encode(update.copy(), None, shared, seed)
    said = encoder.decode(payload, shared)
    chosen = positions.drawn(seed % 2**64, n, k)
    assert state is None and said.count == k
    np.testing.assert_array_equal(said.sparse().positions, chosen)
    np.testing.assert_array_equal(said.values, format.unpack(format.pack(update[chosen]), k))
    held = payloads.inspect(payload)
    assert (held["positions"], held["position_bytes"]) == (("seeded", 8) if k < n else ("all", 0))


@pytest.mark.parametrize("density", [0, 2, float("nan")])
def test_a_density_out_of_range_is_named(density: float) -> None:
    with pytest.raises(ValueError, match=f"density {density} is out of range"):
        encoder.seeded(density, values.FLOAT32)


ENCODERS: dict[str, Encoder[None]] = {
    "seeded": encoder.seeded(0.5, values.FLOAT32),
    "sparse": encoder.sparse(selection.top_k(0.5), values.TERNARY),
    "dense": encoder.dense(),
    "clipped": wrappers.clipped(encoder.dense(), 0.1),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    update = np.array([1, value, 2, 3], np.float32)
    with pytest.raises(errors.NonFiniteError, match="did training diverge"):
        ENCODERS[name].encode(update, None, shared_of((4,)), 0)


@pytest.mark.parametrize("name", [*ENCODERS, "error_feedback"])
@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(4), np.zeros(8, np.float32)[::2]])
def test_what_does_not_fit_the_layout_is_refused(name: str, wrong: Vector) -> None:
    shared = shared_of((4,))
    chosen: Encoder[None] = ENCODERS.get(name) or error_feedback.error_feedback(encoder.dense())  # type: ignore[assignment]
    with pytest.raises(errors.LayoutError, match=r"expected a contiguous float32 vector of shape \(4,\)"):
        chosen.encode(wrong, chosen.init(shared.layout), shared, 0)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_read_only_update_is_left_alone(name: str) -> None:
    update = np.array([1, -2, 3, 0], np.float32)
    update.flags.writeable = False
    payload, *_ = ENCODERS[name].encode(update, None, shared_of((4,)), 0)
    assert payload == ENCODERS[name].encode(update.copy(), None, shared_of((4,)), 0).payload
    assert update.tolist() == [1, -2, 3, 0]


def test_the_same_seed_gives_the_same_payload() -> None:
    update, shared = np.arange(1, 101, dtype=np.float32), shared_of((100,))
    random = encoder.seeded(0.1, values.FLOAT32)
    first, again, other = (random.encode(update.copy(), None, shared, seed).payload for seed in (1, 1, 2))
    assert first == again != other


def test_the_defaults_offset_nothing_and_acknowledge_nothing() -> None:
    plain = encoder.dense()
    assert plain.init(Layout(())) is None and plain.offset(None) is None and plain.acknowledge(None, False) is None


@pytest.fixture(scope="module")
def real_update() -> tuple[Vector, SideInfo]:
    """The update of a small network after one epoch on the digits of scikit-learn."""
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    digits = datasets.load_digits()
    inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    )
    layout = Layout.of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def weights() -> Vector:
        return flatten({name: tensor.numpy() for name, tensor in model.state_dict().items()}, layout)

    before = weights()
    for first in range(0, len(inputs), 50):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs[first : first + 50]), targets[first : first + 50])
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return weights() - before, SideInfo(layout)


def test_a_real_update_at_one_percent(real_update: tuple[Vector, SideInfo]) -> None:
    update, shared = real_update
    n, k = len(update), round(0.01 * len(update))
    dense, *_ = encoder.dense().encode(update.copy(), None, shared, 0)
    payload, *_ = encoder.sparse(selection.top_k(0.01), values.TERNARY).encode(update.copy(), None, shared, 0)
    said = encoder.decode(payload, shared)
    assert isinstance(said, Sparse) and said.count == k
    # The entries sent are the largest: none that is left out is larger than one that is in.
    assert np.abs(np.delete(update, said.positions)).max() <= np.abs(update[said.positions]).min()
    assert len(dense) == 4 * n + payloads.HEADER_BYTES
    assert len(dense) > 300 * len(payload), f"{len(dense)} bytes dense, {len(payload)} sparse"
    assert 8 * len(payload) / k < 10.5


@every_format
def test_a_real_update_keeps_its_direction(real_update: tuple[Vector, SideInfo], format: values.ValueFormat) -> None:
    update, shared = real_update
    payload, *_ = encoder.sparse(selection.top_k(0.1), format).encode(update.copy(), None, shared, 0)
    said = encoder.decode(payload, shared).dense().astype(np.float64)
    kept = np.where(said != 0, update, 0).astype(np.float64)
    assert said @ kept / np.linalg.norm(said) / np.linalg.norm(kept) > 0.8
