"""Steps of a model, and the same steps once more from what a journal holds of them."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.comparable import comparable

from fedpress.compression.errors import PayloadError
from fedpress.compression.messages import records
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.update import Dense, Sparse
from fedpress.compression.wire import payloads, position_set
from fedpress.compression.wire.values import FLOAT32
from fedpress.server.checkpoint import state as states
from fedpress.server.fusion.client_ensemble import ClientModels, LastUpdates, SentUpdate
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import ModelState
from fedpress.server.model.mask_schedules import Sparsity
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.settings import ModelSettings
from fedpress.server.rounds.stepper import Stepper, WeighedUpdate

LAYOUT = Layout(
    (TensorSpec("a.weight", (20, 6), "float32"), TensorSpec("b", (50,), "float32")),
    (TensorSpec("n.running_mean", (3,), "float32"),),
)
OPTIMIZERS = [optimizers.sgd(), optimizers.sgd(0.5, 0.9), optimizers.adam(), optimizers.yogi(), optimizers.adagrad()]
DOWNLINKS = [None, Downlink(0.1), Downlink(0.05, agreed_initial=True, prediction=0.25)]
MASKS: list[dict[str, Any]] = [
    {}, {"method": "gradual", "density": 0.3, "every": 1}, {"method": "feddst", "density": 0.4, "every": 2},
    {"method": "rigl", "density": 0.4, "every": 1},
]  # fmt: skip


def made(settings: dict[str, Any]) -> Stepper:
    stepper = Stepper(ModelSettings(**settings), ClientModels(), None)
    random = np.random.default_rng(0)
    arrays = {spec.name: random.normal(0, 0.1, spec.shape).astype(np.float32) for spec in LAYOUT.parameters}
    stepper.adopt(records.from_numpy({**arrays, "n.running_mean": np.zeros(3, np.float32)}))
    return stepper


def updates(stepper: Stepper, number: int, random: np.random.Generator, votes: bool) -> list[WeighedUpdate]:
    """Return what clients of the newest version send, some of them by a delta, and with a vote where one is due."""
    model, layout = stepper.model, stepper.model.layout
    given = []
    for node in range(int(random.integers(0, 4))):
        values = random.normal(0, 0.1, layout.size).astype(np.float32)
        places = np.flatnonzero(random.random(layout.size) < 0.3)
        update = Dense(values) if random.random() < 0.3 else Sparse(places, values[places], layout.size)
        base = max(0, model.version - int(random.integers(0, 3)))
        download = model.versions.download(base) if model.versions else None
        side_info = model.side_info(download, model.version)
        payload = payloads.pack(update, layout, FLOAT32, side_info.shared_positions).payload
        buffers = buffer_codec.pack({"n.running_mean": random.normal(0, 1, 3).astype(np.float32)}, layout, None)
        vote = b""
        if votes and layout.mask is not None:
            vote = position_set.pack(layout.mask.positions, layout.mask.size, layout.mask.positions)
        sent = SentUpdate(payload, buffers, download, model.version, node)
        given.append(WeighedUpdate(sent, float(random.integers(1, 9)), vote))
    return given


@given(
    st.sampled_from(OPTIMIZERS), st.sampled_from(DOWNLINKS), st.sampled_from(MASKS), st.sampled_from([0.0, 0.5]),
    st.integers(0, 2**32 - 1), st.integers(0, 5),
)  # fmt: skip
def test_what_a_journal_holds_of_a_step_makes_the_same_model(
    optimizer: Any, downlink: Downlink | None, mask: dict[str, Any], averaging: float, seed: int, journal: int
) -> None:
    """Some steps, a checkpoint, more steps: all states are the same when those are taken again from the checkpoint."""
    settings: dict[str, Any] = {
        "optimizer": optimizer, "downlink": downlink, "averaging": averaging, "layout": LAYOUT
    }  # fmt: skip
    if mask:
        sparsity = Sparsity(**mask)
        first = Mask.at(np.arange(0, LAYOUT.size, 2), LAYOUT.size) if sparsity.changes and sparsity.initial else None
        settings["masks"] = sparsity.schedule(first, 8)
    stepper, random, taken = made(settings), np.random.default_rng(seed), []
    saved = b""
    for number in range(1, 8):
        if number == journal + 1:
            saved = states.pack({"model": stepper.model.state(), "clients": stepper.clients.state()})  # type: ignore[union-attr]
        votes = "masks" in settings and settings["masks"].vote_request(number) is not None
        stepper.begin(number)
        for update in updates(stepper, number, random, votes):
            stepper.add(update)
        record = copy.deepcopy(stepper.updates)
        if record:
            stepper.step(number)
        if saved:
            taken.append((number, record, stepper.model.checksum()))
    again = made(settings)
    again.model.restore(states.unpack(saved).part("model", ModelState))
    again.renew_mean()
    assert again.clients is not None and stepper.clients is not None
    again.clients.restore(states.unpack(saved).part("clients", LastUpdates))
    for number, record, checksum in taken:
        again.redo(number, record)
        assert again.model.checksum() == checksum
    assert comparable(again.model.state()) == comparable(stepper.model.state())
    assert comparable(again.clients.state()) == comparable(stepper.clients.state())
    assert again.model.published == stepper.model.published


def test_the_checksum_knows_every_part_of_a_model() -> None:
    stepper = made({"layout": LAYOUT, "downlink": Downlink(0.1)})
    model = stepper.model
    seen = {model.checksum()}
    model.master[3] += np.float32(1e-7)
    seen.add(model.checksum())
    model.apply_update(np.zeros(LAYOUT.size, np.float32), {"n.running_mean": np.full(3, 2, np.float32)})
    seen.add(model.checksum())
    model.publish_version()
    assert len(seen | {model.checksum()}) == 4


def test_an_update_that_cannot_be_decoded_is_none_of_the_step() -> None:
    stepper = made({"layout": LAYOUT})
    stepper.begin(1)
    with pytest.raises(PayloadError):
        stepper.add(WeighedUpdate(SentUpdate(b"no payload", b"", None, 0), 1.0))
    assert stepper.updates == [] and stepper.weight == 0
    (good, *_) = updates(stepper, 1, np.random.default_rng(3), votes=False)
    stepper.add(good)
    assert stepper.updates == [good] and stepper.weight == good.weight
    stepper.drop()
    assert stepper.updates == [] and stepper.weight == 0
