"""`compress`: what is summed, and what becomes of replies that are lost or refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.client import mod
from fedpress.client.state import stores
from fedpress.client.state.memory import Memory
from fedpress.compression.encoders import encoder, error_feedback, selection
from fedpress.compression.encoders.encoder import Encoder, SideInfo
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import orders, records
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import payloads, position_set, values

LAYOUT = Layout((TensorSpec("a", (5, 7), "float32"), TensorSpec("b", (13,), "float32")))


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


def zeros() -> dict[str, Any]:
    return {"a": np.zeros((5, 7), np.float32), "b": np.zeros(13, np.float32)}


def nothing(message: Message, _: Context) -> Message:
    return trained_reply(message, np.zeros(48, np.float32))


def trained_reply(message: Message, update: np.ndarray[Any, Any]) -> Message:
    """Answer with the received weights plus `update`, as an application does."""
    arrays = records.to_numpy(message.content["arrays"])
    arrays["a"] = arrays["a"] + update[:35].reshape(5, 7)
    arrays["b"] = arrays["b"] + update[35:]
    metrics = MetricRecord({"num-examples": 3})
    return Message(RecordDict({"weights": records.from_numpy(arrays), "metrics": metrics}), reply_to=message)


ENCODERS = {
    "residual": lambda: error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.TERNARY)),
    "step ahead": lambda: error_feedback.step_ahead(
        error_feedback.error_feedback(encoder.sparse(selection.top_k(0.1), values.INT8))
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None, max_examples=30)
@given(
    fates=st.lists(st.sampled_from(["accepted", "refused", "lost"]), min_size=1, max_size=12), seed=st.integers(0, 99)
)
def test_nothing_is_lost_whatever_becomes_of_the_replies(name: str, fates: list[str], seed: int) -> None:
    """accepted + pending + residual == sum of updates."""
    made = ENCODERS[name]()
    applied = mod.compress(made, layout=LAYOUT)
    here, draw = context(), np.random.default_rng(seed)
    asked, accepted_sum = np.zeros(48), np.zeros(48)
    accepted = 0
    for ticket, fate in enumerate(fates, start=1):
        update = draw.standard_normal(48).astype(np.float32)
        asked += update
        reply = applied(order_message(ticket, accepted, zeros()), here, lambda m, c, u=update: trained_reply(m, u))
        answer = orders.read_answer(reply.content)
        assert (answer.ticket, answer.version, answer.error) == (ticket, ticket - 1, "")
        if fate == "accepted":
            payloads.decode(answer.payload, SideInfo(LAYOUT)).add_to(accepted_sum)
            accepted = ticket
    # one more order settles the last reply: it trains nothing, and its own payload counts as pending
    reply = applied(order_message(len(fates) + 1, accepted, zeros()), here, nothing)
    pending = payloads.decode(orders.read_answer(reply.content).payload, SideInfo(LAYOUT)).dense()
    stored = stores.open_store(here, "test").load()
    assert stored is not None
    np.testing.assert_allclose(accepted_sum + pending + stored.arrays["encoder/residual"], asked, atol=1e-5)


def test_step_ahead_starts_from_the_model_plus_the_residual() -> None:
    here, seen = context(), []

    def application(message: Message, _: Context) -> Message:
        seen.append(records.to_numpy(message.content["arrays"]))
        return trained_reply(message, np.arange(48, dtype=np.float32))

    applied = mod.compress(ENCODERS["step ahead"](), layout=LAYOUT)
    applied(order_message(1, 0, zeros()), here, application)
    stored = stores.open_store(here, "test").load()
    assert stored is not None
    residual = stored.arrays["encoder/residual"].copy()
    applied(order_message(2, 1, zeros()), here, application)
    assert not np.any(seen[0]["a"])
    np.testing.assert_array_equal(np.concatenate([seen[1]["a"].ravel(), seen[1]["b"]]), residual)


def test_a_nan_is_answered_with_a_reason_and_leaves_the_state_whole() -> None:
    here = context()
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    applied(order_message(1, 0, zeros()), here, lambda m, c: trained_reply(m, np.ones(48, np.float32)))
    before = stores.open_store(here, "test").load()
    reply = applied(order_message(2, 0, zeros()), here, lambda m, c: trained_reply(m, np.full(48, np.nan, np.float32)))
    answer = orders.read_answer(reply.content)
    assert answer.payload == b"" and "NaN" in answer.error
    after = stores.open_store(here, "test").load()
    assert before is not None and after is not None
    # the first payload was not accepted: its mass is back, and nothing of the NaN is in
    np.testing.assert_allclose(after.arrays["encoder/residual"], np.ones(48), atol=1e-6)


def test_only_train_messages_are_touched() -> None:
    message = order_message(1, 0, zeros(), kind="evaluate")
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    assert applied(message, context(), lambda m, c: m) is message


def test_an_order_of_another_strategy_is_refused_with_the_likely_mistake() -> None:
    message = Message(RecordDict({"arrays": records.from_numpy(zeros())}), dst_node_id=1, message_type="train")
    with pytest.raises(orders.MessageError, match="SparseFed"):
        mod.compress(ENCODERS["residual"](), layout=LAYOUT)(message, context(), lambda m, c: m)


def test_the_state_of_another_model_is_refused() -> None:
    here = context()
    mod.compress(ENCODERS["residual"](), layout=LAYOUT)(
        order_message(1, 0, zeros()), here, lambda m, c: trained_reply(m, np.ones(48, np.float32))
    )
    other = Layout((TensorSpec("a", (5, 7), "float32"), TensorSpec("c", (13,), "float32")))
    with pytest.raises(FedpressError, match="another model"):
        held = {"a": np.zeros((5, 7), np.float32), "c": np.zeros(13, np.float32)}
        mod.compress(ENCODERS["residual"](), layout=other)(order_message(2, 1, held), here, lambda m, c: m)


def test_an_order_of_a_mask_version_with_another_layout_starts_anew_and_says_what_is_lost() -> None:
    layout = Layout((TensorSpec("a", (5, 7), "float32"), TensorSpec("c", (13,), "float32")))
    here, made = context(), ENCODERS["residual"]()

    def answered(agreed: Layout, *order: int, mask_version: int, kind: str = "train") -> orders.Answer:
        def application(message: Message, _: Context) -> Message:
            arrays = {name: array + 1 for name, array in records.to_numpy(message.content["arrays"]).items()}
            content = {"w": records.from_numpy(arrays), "metrics": MetricRecord({"num-examples": 3})}
            return Message(RecordDict(content), reply_to=message)

        held = {spec.name: np.zeros(spec.shape, np.float32) for spec in agreed.parameters}
        message = order_message(*order, held, kind, mask_version)
        return orders.read_answer(mod.compress(made, layout=agreed)(message, here, application).content)

    def kept() -> Any:
        stored = stores.open_store(here, "test").load()
        assert stored is not None
        return stored.arrays["encoder/residual"].copy()

    answered(LAYOUT, 1, 0, mask_version=0)
    first = answered(layout, 2, 1, mask_version=1)
    assert first.lost_state and not first.error
    said = payloads.decode(first.payload, SideInfo(layout)).dense()
    np.testing.assert_allclose(said + kept(), np.ones(48))  # nothing of the first model is in it
    assert "is older than 2" in answered(LAYOUT, 1, 0, mask_version=0).error
    with pytest.raises(orders.MessageError, match="to evaluate is within mask 2, this client has that of mask 1"):
        answered(layout, 0, 2, mask_version=2, kind="evaluate")
    np.testing.assert_allclose(said + kept(), np.ones(48))
    second = answered(layout, 3, 2, mask_version=1)
    assert not second.lost_state
    said += payloads.decode(second.payload, SideInfo(layout)).dense()
    np.testing.assert_allclose(said + kept(), np.full(48, 2))


def masked_order(
    ticket: int, accepted: int, mask: bytes | None, mask_version: int, drop: float = 0.0, kind: str = "train"
) -> Message:
    order = orders.Order("test", ticket, ticket, mask_version, ticket - 1, accepted, mask=mask, drop=drop, grow=drop)
    held = {"a": np.ones((5, 7), np.float32), "b": np.ones(13, np.float32)}  # whole, outside the mask too
    content = {"arrays": records.from_numpy(held), "config": ConfigRecord(dict(orders.write_order(order)))}
    return Message(RecordDict(content), dst_node_id=1, message_type=kind)


def of_flags(*flags: bool) -> Mask:
    return Mask.of(np.resize(np.array(flags), 48))


def memory(here: Context, federation: str = "test") -> Memory:
    stored = stores.open_store(here, federation).load()
    assert stored is not None
    return Memory.of(stored)


def test_a_stock_application_trains_inside_the_mask_and_what_survives_a_new_one_keeps_its_residual() -> None:
    here, seen = context(), []
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    first, second = of_flags(True, True, False), of_flags(True, False)

    def application(message: Message, _: Context) -> Message:
        seen.append(flatten.flatten(records.to_numpy(message.content["arrays"]), LAYOUT))
        assert orders.read_order(message.content).mask in (first.bitmap, second.bitmap)
        return trained_reply(message, np.arange(1, 49, dtype=np.float32))  # everywhere: it knows of no mask

    def answered(message: Message) -> orders.Answer:
        return orders.read_answer(applied(message, here, application).content)

    one = answered(masked_order(1, 0, position_set.pack(first.positions, 48), 1))
    np.testing.assert_array_equal(seen[0], first.flags)
    said = payloads.decode(one.payload, SideInfo(LAYOUT.within(first))).dense()
    expected = np.arange(1, 49)[first.flags]
    np.testing.assert_allclose(said + memory(here).encoder["residual"], expected, atol=1e-5)
    # The upload is refused: it comes back within the old mask, then what the new one lacks falls away.
    coded = position_set.pack(second.positions, 48, first.positions)
    two = answered(masked_order(2, 0, coded, 2))
    np.testing.assert_array_equal(seen[1], second.flags)
    assert not two.lost_state
    said = payloads.decode(two.payload, SideInfo(LAYOUT.within(second))).dense()
    twice = (np.arange(1, 49) * (1 + first.flags))[second.flags]
    np.testing.assert_allclose(said + memory(here).encoder["residual"], twice, atol=1e-5)
    assert memory(here).discarded == pytest.approx(np.arange(1, 49)[first.flags & ~second.flags].sum())
    assert memory(here).layout == LAYOUT.within(second)
    # It has the mask: the next order need not bring it, and an order that brings it against an older one does no harm.
    assert not answered(masked_order(3, 2, b"", 2)).needs_model
    assert not answered(masked_order(4, 3, coded, 2)).needs_model


def test_a_client_asks_for_a_mask_that_it_lacks() -> None:
    here, mask = context(), of_flags(True, False)
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    damaged = bytearray(position_set.pack(mask.positions, 48))
    damaged[-1] ^= 1
    for coded in (b"", bytes(damaged)):
        reply = applied(masked_order(1, 0, coded, 2), here, nothing)
        assert orders.read_answer(reply.content).needs_model
    applied(masked_order(2, 0, position_set.pack(mask.positions, 48), 2), here, nothing)
    reply = applied(masked_order(3, 2, b"", 3), here, nothing)  # of the next version
    assert orders.read_answer(reply.content).needs_model


def test_the_application_evaluates_the_model_within_its_mask() -> None:
    seen: list[Any] = []

    def application(message: Message, _: Context) -> Message:
        seen.append(flatten.flatten(records.to_numpy(message.content["arrays"]), LAYOUT))
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 3})}), reply_to=message)

    mask = of_flags(True, False, False)
    message = masked_order(0, 0, position_set.pack(mask.positions, 48), 1, kind="evaluate")
    mod.compress(ENCODERS["residual"](), layout=LAYOUT)(message, context(), application)
    np.testing.assert_array_equal(seen[0], mask.flags)


def test_a_vote_goes_up_in_the_answer_coded_against_the_mask() -> None:
    mask, wanted = of_flags(True, False), of_flags(True, False, True, False, False, True)

    def application(message: Message, _: Context) -> Message:
        assert orders.read_order(message.content).drop == 0.3
        reply = trained_reply(message, np.ones(48, np.float32))
        reply.content[orders.VOTE] = ConfigRecord({"mask": wanted.bitmap})
        return reply

    message = masked_order(1, 0, position_set.pack(mask.positions, 48), 1, drop=0.3)
    reply = mod.compress(ENCODERS["residual"](), layout=LAYOUT)(message, context(), application)
    assert set(reply.content) == {orders.ANSWER}
    vote = orders.read_answer(reply.content).vote
    np.testing.assert_array_equal(position_set.unpack(vote, 48, mask.positions), wanted.positions)
    assert records.sizes(reply)["vote"] == len(vote)


def test_what_is_remembered_in_a_file_has_the_mask_of_the_order(tmp_path: Path) -> None:
    here = context(**{"state-folder": str(tmp_path)})
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    applied(order_message(1, 0, zeros()), here, nothing)
    assert memory(here).layout == LAYOUT
    mask = of_flags(True, False)
    applied(masked_order(2, 1, position_set.pack(mask.positions, 48), 1), here, nothing)
    assert memory(here).layout == LAYOUT.within(mask) and memory(here).mask_version == 1


def test_an_encoder_may_depend_on_the_context() -> None:
    chosen: list[Context] = []

    def pick(here: Context) -> Encoder[Any]:
        chosen.append(here)
        return encoder.dense()

    here = context()
    mod.compress(pick, layout=LAYOUT)(order_message(1, 0, zeros()), here, nothing)
    assert chosen == [here]


def test_a_client_whose_file_is_damaged_says_so_and_takes_part_as_new(tmp_path: Path) -> None:
    here = context(**{"state-folder": str(tmp_path)})
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    applied(order_message(1, 0, zeros()), here, lambda m, c: trained_reply(m, np.ones(48, np.float32)))
    (path,) = tmp_path.glob("*/client-1.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    answers = [
        orders.read_answer(applied(order_message(ticket, accepted, zeros()), here, nothing).content)
        for ticket, accepted in ((2, 0), (3, 0), (4, 3))
    ]
    assert [answer.lost_state for answer in answers] == [True, True, False]  # until an answer that says so is accepted
    assert not answers[0].error and not payloads.decode(answers[0].payload, SideInfo(LAYOUT)).dense().any()
    assert path.exists() and path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("moment", ["before the state is written", "after it, before the reply leaves"])
def test_a_client_that_is_killed_answers_the_same_ticket_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What the state's file holds decides: the stored answer is sent again, or the ticket is trained from the start."""
    applied = mod.compress(ENCODERS["step ahead"](), layout=LAYOUT)
    trained: list[int] = []

    def run(folder: Path, ticket: int, accepted: int) -> bytes:
        def application(message: Message, _: Context) -> Message:
            trained.append(ticket)
            return trained_reply(message, np.random.default_rng(ticket).standard_normal(48).astype(np.float32))

        here = context(**{"state-folder": str(folder)})  # every time as in a process of its own
        return records.content_to_bytes(applied(order_message(ticket, accepted, zeros()), here, application).content)

    class Killed(BaseException):
        pass

    expected = [run(tmp_path / "undisturbed", ticket, ticket - 1) for ticket in (1, 2, 3)]
    trained.clear()
    found = [run(tmp_path / "killed", 1, 0)]
    with monkeypatch.context() as patch:
        save = stores.FolderStore.save

        def killed(store: stores.FolderStore, stored: stores.Stored) -> None:
            if moment.startswith("after"):
                save(store, stored)
            raise Killed

        patch.setattr(stores.FolderStore, "save", killed)
        with pytest.raises(Killed):
            run(tmp_path / "killed", 2, 1)
    found += [run(tmp_path / "killed", 2, 1), run(tmp_path / "killed", 3, 2)]
    assert found == expected
    assert trained == ([1, 2, 3] if moment.startswith("after") else [1, 2, 2, 3])


def counting(seen: list[float], diverges: bool = False) -> ClientAppCallable:
    """Return an application whose optimizer counts its steps, and notes how many it finds."""

    def application(message: Message, here: Context) -> Message:
        steps = stores.moments(here).get("steps/a", np.zeros(()))
        seen.append(float(steps))
        stores.leave_moments(here, {"steps/a": steps + 1, "mean/a": np.ones((5, 7), np.float32)})
        return trained_reply(message, np.full(48, np.nan if diverges else 1, np.float32))

    return application


@pytest.mark.parametrize("store", ["memory", "files"])
def test_moments_of_an_optimizer_are_kept_with_the_answer_and_are_not_stepped_twice(store: str, tmp_path: Path) -> None:
    applied, seen = mod.compress(ENCODERS["residual"](), layout=LAYOUT), list[float]()
    here = context()
    for ticket, accepted in ((1, 0), (2, 1), (2, 1), (1, 0), (3, 1), (3, 1), (4, 3)):  # repeated, old, refused
        if store == "files":
            here = context(**{"state-folder": str(tmp_path)})  # every time as in a process of its own
        applied(order_message(ticket, accepted, zeros()), here, counting(seen))
        assert stores.MOMENTS not in here.state  # it is in the client's own state, once
    assert seen == [0, 1, 2, 3]
    assert memory(here).moments["mean/a"].shape == (5, 7)
    applied(order_message(0, 4, zeros(), "evaluate"), here, nothing)
    assert memory(here).moments["steps/a"] == 4


def test_moments_start_anew_where_the_residual_does_and_after_a_divergence(caplog: pytest.LogCaptureFixture) -> None:
    applied, seen, here = mod.compress(ENCODERS["residual"](), layout=LAYOUT), list[float](), context()
    applied(order_message(1, 0, zeros()), here, counting(seen))
    applied(order_message(7, 5, zeros()), here, counting(seen))  # its state comes from a backup
    assert seen == [0, 0] and "the moments of the optimizer start anew" in caplog.text
    answer = applied(order_message(8, 7, zeros()), here, counting(seen, diverges=True))
    assert "NaN" in orders.read_answer(answer.content).error
    applied(order_message(9, 7, zeros()), here, counting(seen))
    assert seen == [0, 0, 1, 0]


def test_an_application_without_moments_leaves_nothing() -> None:
    applied, here = mod.compress(ENCODERS["residual"](), layout=LAYOUT), context()
    applied(order_message(1, 0, zeros()), here, nothing)
    assert not memory(here).moments and stores.MOMENTS not in here.state


def test_a_node_says_its_tier_with_its_update_and_the_server_remembers_it() -> None:
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)
    silent = applied(order_message(1, 0, zeros()), context(), nothing)
    said = applied(order_message(1, 0, zeros()), context(tier="phone"), nothing)
    without, within = (orders.read_answer(records.unfolded(reply.content)) for reply in (silent, said))
    assert (without.tier, within.tier) == ("", "phone")
    assert "tier" not in silent.content.config_records[orders.ANSWER]  # nothing is sent where nothing is said
    assert within._replace(tier="") == without


def test_a_tier_that_cannot_be_read_is_found_out_before_training(tmp_path: Path) -> None:
    applied = mod.compress(ENCODERS["residual"](), layout=LAYOUT)

    def never(message: Message, _: Context) -> Message:
        raise AssertionError("it trains")

    with pytest.raises(FedpressError, match="cannot read .*nowhere"):
        applied(order_message(1, 0, zeros()), context(probe=str(tmp_path / "nowhere")), never)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_application_may_keep_what_it_gets_and_what_it_gives(name: str) -> None:
    """A stateful app puts both records into its context, or holds them in a variable: they stay what they were."""
    here, kept = context(), []

    def application(message: Message, context: Context) -> Message:
        received = message.content["arrays"]
        reply = trained_reply(message, np.arange(48, dtype=np.float32))
        given = reply.content["weights"]
        context.state["received"], context.state["given"] = received, given
        kept.extend((record, records.to_numpy(record)) for record in (received, given))
        return reply

    client = mod.compress(ENCODERS[name]())
    for ticket in (1, 2, 3):
        assert not orders.read_answer(
            client(order_message(ticket, ticket - 1, zeros()), here, application).content
        ).error
        for record, values_then in kept:
            assert {key: array.tolist() for key, array in records.to_numpy(record).items()} == {
                key: array.tolist() for key, array in values_then.items()
            }
        assert records.to_numpy(here.state["given"])["b"].tolist() == kept[-1][1]["b"].tolist()


def test_an_application_may_return_the_very_record_that_it_got() -> None:
    def application(message: Message, _: Context) -> Message:
        metrics = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    client = mod.compress(ENCODERS["residual"]())
    assert not orders.read_answer(client(order_message(1, 0, zeros()), context(), application).content).error
