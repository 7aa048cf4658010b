"""The model that a client makes of an order: version 0, frozen parameters, whatever it has by itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.supercore.task_identity import TaskIdentity

from fedpress.client import mod
from fedpress.client.state import stores
from fedpress.client.state.memory import Memory
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Answer
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.wire import payloads, values
from fedpress.server.model import optimizers
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.versions import Downlink
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.orders import Orders

WITH_BASE = Layout(
    (TensorSpec("head", (6,), "float32"), TensorSpec("half", (40,), "float16")),
    (TensorSpec("running_mean", (3,), "float32"),),
    frozen=(TensorSpec("backbone", (5, 2), "float64"),),
)


def initial_arrays(seed: int = 0) -> dict[str, Any]:
    """The arrays of an initial model."""
    random = np.random.default_rng(seed)
    return {
        spec.name: random.standard_normal(spec.shape).astype(spec.dtype)
        for spec in (*WITH_BASE.parameters, *WITH_BASE.buffers, *WITH_BASE.frozen)
    }


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    yield


def context(**node_config: Any) -> Context:
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def order_message(
    ticket: int, accepted: int, held: dict[str, Any], kind: str = "train", mask_version: int = 0
) -> Message:
    order = orders.Order("test", ticket, round=ticket, mask_version=mask_version, version=ticket - 1, accepted=accepted)
    content = RecordDict({"arrays": records.from_numpy(held), "config": ConfigRecord(dict(orders.write_order(order)))})
    return Message(content, dst_node_id=1, message_type=kind)


def memory(here: Context, federation: str = "test") -> Memory:
    stored = stores.open_store(here, federation).load()
    assert stored is not None
    return Memory.of(stored)


def residual() -> Encoder[Any]:
    return error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.TERNARY))


class Server:
    """A model and the orders for one node, whose messages go through the bytes of the wire."""

    def __init__(self, agreed: bool = True, seed: int = 0, downlink: bool = True) -> None:
        arrays = records.from_numpy(initial_arrays(seed))
        down = Downlink(0.3, agreed_initial=agreed) if downlink else None
        self.model = GlobalModel(arrays, WITH_BASE, optimizers.sgd(), down)
        self.orders = Orders("fed", "arrays", "config", Accounting())
        self.sent: list[Message] = []

    def contact(self, client: Mod, here: Context, application: ClientAppCallable, round: int = 1) -> Answer:
        """Send an order, again as often as the client asks for the model, and verify the answer."""
        message = self.orders.train(1, round, {}, self.model)
        while True:
            self.sent.append(message)
            reply = client(records.message_from_bytes(records.message_to_bytes(message)), here, application)
            answer = orders.read_answer(reply.content)
            if not answer.needs_model:
                break
            assert len(self.sent) < 9
            message = self.orders.from_the_beginning(1, round, message.metadata.message_type, {}, self.model)
        assert self.orders.verify(reply, lambda content: 1.0, self.model, round) is not None
        return answer

    def step(self, seed: int) -> None:
        update = np.random.default_rng(seed).standard_normal(WITH_BASE.size).astype(np.float32)
        self.model.step(update, dict(self.model.buffers))

    @property
    def with_arrays(self) -> list[bool]:
        """Whether each message held the model."""
        return [bool(message.content.array_records) for message in self.sent]


def recording(seen: list[dict[str, Any]], change: str = "head") -> ClientAppCallable:
    """Return an application that notes the model it gets, and trains one array."""

    def application(message: Message, _: Context) -> Message:
        arrays = records.to_numpy(message.content["arrays"])
        seen.append({name: array.copy() for name, array in arrays.items()})
        arrays[change] = arrays[change] + np.ones((), arrays[change].dtype)
        metrics = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"w": records.from_numpy(arrays), "metrics": metrics}), reply_to=message)

    return application


def held_by(server: Server) -> dict[str, Any]:
    return records.to_numpy(server.model.arrays)


OWN: dict[str, Callable[[], Any]] = {
    "the same": initial_arrays,
    "another draw": lambda: initial_arrays(1),
    "another backbone": lambda: {**initial_arrays(), "backbone": initial_arrays(1)["backbone"]},
    "other buffers": lambda: {**initial_arrays(), "running_mean": initial_arrays(1)["running_mean"]},
    "a weight beside it": lambda: {**initial_arrays(), "head": initial_arrays()["head"] + np.float32(1e-3)},
    "an array too few": lambda: {name: array for name, array in initial_arrays().items() if name != "head"},
    "an array too many": lambda: {**initial_arrays(), "extra": np.zeros(2)},
    "another shape": lambda: {**initial_arrays(), "head": np.zeros(7, np.float32)},
    "not a number": lambda: {**initial_arrays(), "running_mean": np.full(3, np.nan, np.float32)},
    "none": lambda: None,
}


@pytest.mark.parametrize("store", ["memory", "files"])
@pytest.mark.parametrize("late", [False, True], ids=["from the first round", "later"])
@pytest.mark.parametrize("own", OWN)
def test_whatever_a_client_has_by_itself_it_trains_from_the_servers_model(
    own: str, late: bool, store: str, tmp_path: Path
) -> None:
    """Version 0 is agreed by its tag, or the model is sent: once, and never replaced by what a client has."""
    server, seen = Server(), []
    here = context(**({"state-folder": str(tmp_path)} if store == "files" else {}))
    client = mod.compress(residual(), layout=WITH_BASE, initial=lambda context: OWN[own]())
    for seed in range(3 if late else 0):
        server.step(seed)
    for round in (1, 2, 3):
        server.contact(client, here, recording(seen), round)
        assert {name: array.tobytes() for name, array in seen[-1].items()} == {
            name: array.tobytes() for name, array in held_by(server).items()
        }
        assert np.array_equal(seen[-1]["backbone"], initial_arrays()["backbone"])
        server.step(10 + round)
    assert server.with_arrays == [False] * 3 if own == "the same" else [False, True, False, False]


def test_a_client_that_cannot_make_version_0_is_offered_it_once() -> None:
    server, seen = Server(), []
    client = mod.compress(residual(), layout=WITH_BASE, initial=lambda context: initial_arrays(1))
    server.contact(client, context(), recording(seen))
    for _ in range(200):  # so that deltas from where the client is are no longer kept
        server.step(3)
    server.orders.tickets.forget_model(1)
    server.contact(client, context(), recording(seen), 2)
    assert server.with_arrays == [False, True, True]


def test_without_weights_of_their_own_clients_are_sent_the_model_at_once() -> None:
    for agreed, initial in ((False, initial_arrays), (True, None)):
        server, seen = Server(agreed), []
        own = (lambda context, initial=initial: initial()) if initial else None
        client = mod.compress(residual(), layout=WITH_BASE, initial=own)
        server.contact(client, context(), recording(seen))
        assert server.with_arrays == ([False, True] if agreed else [True])
        np.testing.assert_array_equal(seen[0]["head"], held_by(server)["head"])


def test_a_backbone_that_changes_at_the_client_is_noticed_in_any_round() -> None:
    server, seen, here = Server(), [], context()
    own = [initial_arrays(), {**initial_arrays(), "backbone": initial_arrays(1)["backbone"]}]
    client = mod.compress(residual(), layout=WITH_BASE, initial=lambda context: own[0])
    server.contact(client, here, recording(seen))
    own.reverse()  # its file is replaced between two rounds
    server.step(1)
    server.contact(client, here, recording(seen), 2)
    assert server.with_arrays[-1] and np.array_equal(seen[-1]["backbone"], initial_arrays()["backbone"])


def test_training_that_changes_what_is_not_sent_is_an_error() -> None:
    client, server = mod.compress(residual(), layout=WITH_BASE, initial=lambda context: initial_arrays()), Server()
    message = server.orders.train(1, 1, {}, server.model)
    answer = orders.read_answer(client(message, context(), recording([], "backbone")).content)
    assert "training has changed 'backbone', which has requires_grad=False" in answer.error


@pytest.mark.parametrize("store", ["memory", "files"])
@pytest.mark.parametrize("own", OWN)
def test_without_a_downlink_what_is_not_trained_is_sent_to_who_lacks_it_once(
    own: str, store: str, tmp_path: Path
) -> None:
    server, seen = Server(downlink=False), []
    here = context(**({"state-folder": str(tmp_path)} if store == "files" else {}))
    client = mod.compress(residual(), layout=WITH_BASE, initial=lambda context: OWN[own]())
    for round in (1, 2, 3):
        server.contact(client, here, recording(seen), round)
        assert {name: array.tobytes() for name, array in seen[-1].items()} == {
            name: array.tobytes() for name, array in held_by(server).items()
        }
        server.step(10 + round)
    by_itself = own in ("the same", "a weight beside it", "other buffers")
    sent = ["backbone" in message.content.array_records["arrays"] for message in server.sent]
    assert sent == ([False] * 3 if by_itself else [False, True, False, False])
    assert bool(memory(here, "fed").frozen) != by_itself  # who can make it keeps no second copy


def test_a_client_that_has_lost_what_is_not_trained_asks_for_it() -> None:
    server, seen, here = Server(downlink=False), [], context()
    client = mod.compress(residual(), layout=WITH_BASE)
    server.contact(client, here, recording(seen))
    assert "backbone" in memory(here, "fed").frozen
    server.step(1)
    server.contact(client, context(), recording(seen), 2)  # a new disk
    sent = ["backbone" in message.content.array_records["arrays"] for message in server.sent]
    assert sent == [False, True, False, True]  # offered by its hash, and sent when asked for, twice
    np.testing.assert_array_equal(seen[-1]["backbone"], initial_arrays()["backbone"])


def test_running_statistics_of_a_frozen_layer_that_training_moves_are_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layout = Layout(
        (TensorSpec("head", (6,), "float32"),), frozen=(TensorSpec("backbone.bn.running_mean", (3,), "float32"),)
    )
    arrays = {"head": np.zeros(6, np.float32), "backbone.bn.running_mean": np.zeros(3, np.float32)}

    def application(message: Message, _: Context) -> Message:
        return Message(
            RecordDict({"w": records.from_numpy({name: array + 1 for name, array in arrays.items()})}),
            reply_to=message,
        )

    client = mod.compress(encoder.dense(), layout=layout)
    answer = orders.read_answer(client(order_message(1, 0, arrays), context(), application).content)
    assert not answer.error and not answer.buffers
    np.testing.assert_array_equal(payloads.decode(answer.payload, SideInfo(layout)).dense(), np.ones(6))
    assert "training has moved 1 running statistics of frozen layers, such as 'backbone.bn.running_mean'" in caplog.text


@pytest.mark.parametrize("downlink", [True, False])
def test_a_client_without_the_layout_that_the_server_has_says_so(downlink: bool) -> None:
    """Never is an application handed the trained part alone, with whatever it has in place of the frozen one."""
    server, seen = Server(downlink=downlink), []
    client = mod.compress(residual())
    order = server.orders.train(1, 1, {}, server.model)
    if downlink:  # whole, as for who could not use the delta
        order = server.orders.from_the_beginning(1, 1, "train", {}, server.model)
        order = server.orders.from_the_beginning(1, 1, "train", {}, server.model)
    answer = orders.read_answer(client(order, context(), recording(seen)).content)
    assert "the same, or neither" in answer.error and not seen
