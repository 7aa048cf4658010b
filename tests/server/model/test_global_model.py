"""Steps of the global model: in halves, by the server itself, and within changing masks."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from tests.server.comparable import comparable

from fedpress.compression.messages import records
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector
from fedpress.server.checkpoint import state
from fedpress.server.checkpoint.state import CheckpointError
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel, ModelState
from fedpress.server.model.versions import Downlink

SIZE = 500


def arrays(weights: Vector, mean: float = 0.0) -> ArrayRecord:
    return records.from_numpy({"weight": weights, "norm.running_mean": np.full(2, mean, np.float32)})


def draws(count: int) -> list[Vector]:
    random = np.random.default_rng(5)
    return [random.normal(0, 0.1, SIZE).astype(np.float32) for _ in range(count)]


def weights_of(record: ArrayRecord) -> Vector:
    found: Vector = records.to_numpy(record)["weight"]
    return found


def test_what_clients_hold_shows_a_divergence() -> None:
    """A learning rate of 1e30: a model that clients hold as if nothing had happened would hide it."""
    first, update = draws(2)
    model = GlobalModel(arrays(first), None, optimizers.sgd(1e30), Downlink(0.02))
    model.step(update, dict(model.buffers))
    assert np.abs(weights_of(model.arrays)).max() > 1e28
    with pytest.raises(FloatingPointError, match="no longer finite"):
        model.step(np.full(SIZE, 1e10, np.float32), dict(model.buffers))


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("downlink", [None, Downlink(0.02)])
def test_a_shift_moves_master_mean_and_held_and_is_one_version(averaging: float, downlink: Downlink | None) -> None:
    first, update, taught = draws(3)
    model = GlobalModel(arrays(first), None, optimizers.sgd(1.0, 0.5), downlink, averaging)
    model.step(update, {"norm.running_mean": np.ones(2, np.float32)})
    start, before, version = model.published, model.master.copy(), model.version
    momentum = model.optimizer.state["momentum_buffer"].numpy().copy()
    apart = np.linalg.norm(before + taught - weights_of(start) - weights_of(model.arrays))

    model.apply_server_update(start, arrays(taught, mean=3.0), Downlink(0.5, levels=15))

    np.testing.assert_allclose(model.master, before + (taught - weights_of(start)), atol=1e-6)
    np.testing.assert_array_equal(model.optimizer.state["momentum_buffer"].numpy(), momentum)
    assert model.version == version + 1
    assert records.to_numpy(model.published)["norm.running_mean"].tolist() == [3, 3]
    if averaging:  # what is evaluated and published is what was learned, to the bit
        np.testing.assert_array_equal(weights_of(model.published), taught)
    if downlink is None:
        np.testing.assert_array_equal(weights_of(model.arrays), model.master)
    else:
        assert model.versions is not None and model.versions.held.version == model.version
        left = np.linalg.norm(model.master - weights_of(model.arrays))
        assert left < 0.4 * apart  # half of the entries went down at once
        model.step(np.zeros(SIZE, np.float32), dict(model.buffers))  # and the rest follows by the usual way
        assert np.linalg.norm(model.master - weights_of(model.arrays)) > 0


def test_a_shift_that_is_not_finite_is_refused() -> None:
    first, taught = draws(2)
    taught[7] = np.inf
    model = GlobalModel(arrays(first), None, optimizers.sgd(1.0))
    with pytest.raises(FloatingPointError, match="its training on the server has diverged"):
        model.apply_server_update(model.published, arrays(taught), Downlink(0.5))


def test_the_two_halves_of_a_step_are_a_step() -> None:
    first, update = draws(2)
    layout = Layout.of_arrays(records.to_numpy(arrays(first)))
    whole, halves = (GlobalModel(arrays(first), layout, optimizers.sgd(0.7), Downlink(0.1), 0.9) for _ in range(2))
    buffers = {"norm.running_mean": np.ones(2, np.float32)}
    whole.step(update.copy(), buffers)
    halves.apply_update(update, buffers)
    assert halves.version == 0
    halves.publish_version()
    assert whole.version == 1
    assert comparable(whole.state()) == comparable(halves.state())
    assert flatten.flatten(records.to_numpy(whole.published), layout).shape == (SIZE,)


# ---- masks -----------------------------------------------------------------------------------------------------------

LAYOUT = Layout(
    (TensorSpec("a", (20, 10), "float32"), TensorSpec("b", (20,), "float32"), TensorSpec("c", (5, 20), "float32"))
)
N = LAYOUT.size
FIRST = dynamic_sparsity.random_mask(LAYOUT, 0.3, 1, "layer")


def drawn(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def masked_arrays() -> ArrayRecord:
    return records.from_numpy(flatten.unflatten(drawn(N, 9), LAYOUT))


RULES = {
    "momentum": optimizers.sgd(1.0, 0.9), "adam": optimizers.adam(), "yogi": optimizers.yogi(),
    "adagrad": optimizers.adagrad(),
    "sgd": optimizers.sgd(), "majority": optimizers.majority_vote(0.1),
}  # fmt: skip


@pytest.mark.parametrize("downlink", [None, Downlink(0.2)], ids=["whole", "deltas"])
@pytest.mark.parametrize("rule", RULES)
def test_master_and_optimizer_follow_the_mask_and_come_back_from_a_checkpoint(
    rule: str, downlink: Downlink | None
) -> None:
    """What survives steps on as in a model whose mask has never changed; what is new begins at zero."""
    second = dynamic_sparsity.random_mask(LAYOUT, 0.3, 2, "layer")

    def fresh() -> GlobalModel:
        return GlobalModel(masked_arrays(), LAYOUT, RULES[rule], downlink, 0.5, FIRST)

    model, plain = fresh(), fresh()
    update, later = drawn(FIRST.count, 3), drawn(N, 4)
    model.step(update.copy(), {}, next_mask=lambda master, layout: second)
    plain.step(update, {})
    move = LAYOUT.within(FIRST).change_to(LAYOUT.within(second))
    assert (model.masks.version, plain.masks.version, model.layout.mask) == (2, 1, second)
    np.testing.assert_array_equal(model.master, move.apply(plain.master))
    model.step(later[second.flags], {})
    plain.step(later[FIRST.flags], {})
    np.testing.assert_array_equal(model.master[move.destinations], plain.master[move.survivors])
    for published in (model.arrays, model.published):
        assert not flatten.flatten(records.to_numpy(published), LAYOUT)[~second.flags].any()
    again = fresh()
    again.restore(state.unpack(state.pack({"model": model.state()})).part("model", ModelState))
    for each in (model, again):
        each.step(later[second.flags].copy(), {}, next_mask=lambda master, layout: FIRST)
        each.step(later[FIRST.flags], {})
    assert model.master.tobytes() == again.master.tobytes() and model.masks.version == again.masks.version == 3
    for first, other in zip(model.published.values(), again.published.values(), strict=True):
        assert first.data == other.data
    for known in (None, 1, 2, 3):
        assert model.masks.coded(known) == again.masks.coded(known)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = GlobalModel(masked_arrays(), LAYOUT, optimizers.sgd(), mask=FIRST)
    other = Layout((TensorSpec("a", (20, 10), "float32"),))
    named = records.from_numpy({"a": np.zeros((20, 10), np.float32)})
    with pytest.raises(CheckpointError, match="another model"):
        GlobalModel(named, other, optimizers.sgd()).restore(model.state())
