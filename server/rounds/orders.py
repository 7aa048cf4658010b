"""Orders and verdicts: who was asked for what, which replies fit, and what became of each node's last upload."""

from collections.abc import Callable, Mapping
from logging import WARNING
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore import log

from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Download, Order
from fedpress.server.checkpoint.state import State, as_array, pairs
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import Asked
from fedpress.server.rounds.accounting import Accounting


class Checked(NamedTuple):
    """A reply that fits its ticket; its payload is still to be decoded."""

    node: int
    ticket: int
    weight: float
    payload: bytes
    buffers: bytes
    content: RecordDict  # its metrics
    download: Download | None  # that the client trained from
    staleness: int  # steps since the version that it trained from
    lost_state: bool = False  # the client has lost what it kept back
    vote: bytes = b""  # on the mask


class Orders:
    """One open ticket per node at most, the verdict on its last upload, and the version that it holds.

    Args:
        federation: names the federation; clients keep their state under it.
        arrayrecord_key: where a message holds the model.
        configrecord_key: where it holds the application's configuration, and the order.
        books: told of every refusal and of lost states.

    Attributes:
        open: the open order of each node.
        tickets: how many were issued.
        tiers: the class of devices that a node has said it belongs to, for those that have.
    """

    def __init__(self, federation: str, arrayrecord_key: str, configrecord_key: str, books: Accounting) -> None:
        self.open: dict[int, Order] = {}
        self.tickets = 0
        self.tiers: dict[int, str] = {}
        self._federation = federation
        self._arrayrecord_key = arrayrecord_key
        self._configrecord_key = configrecord_key
        self._books = books
        self._accepted: dict[int, int] = {}  # node -> ticket of its last accepted upload
        self._confirmed: dict[int, int] = {}  # node -> version that it has shown to hold
        self._masks: dict[int, int] = {}  # node -> epoch whose mask it has shown to have

    def train(
        self, node: int, server_round: int, config: Mapping[str, Any], model: GlobalModel, asked: Asked | None = None
    ) -> Message:
        """Open a ticket for a node and return the message with its order; `asked`: on what it is to vote."""
        self.tickets += 1
        message = self._message(node, server_round, self.tickets, MessageType.TRAIN, config, model, asked=asked)
        self.open[node] = orders.read_order(message.content)
        return message

    def evaluate(self, node: int, server_round: int, config: Mapping[str, Any], model: GlobalModel) -> Message:
        """Return the message that asks a node to evaluate the model."""
        return self._message(node, server_round, 0, MessageType.EVALUATE, config, model)

    def from_the_beginning(
        self, node: int, server_round: int, kind: str, config: Mapping[str, Any], model: GlobalModel
    ) -> Message:
        """Return an order again, for a client that could not use the delta that it was sent."""
        held = self._confirmed.pop(node, None)
        self._masks.pop(node, None)
        log(WARNING, "node %d cannot get from version %s to %d by a delta", node, held, model.version)
        # A client that was thought to hold nothing had all that is needed, but for names and shapes.
        whole = held is None
        if kind == MessageType.EVALUATE:
            return self._message(node, server_round, 0, kind, config, model, whole)
        order = self.open[node]
        asked = Asked(order.drop, order.grow)
        again = self._message(node, order.round, order.ticket, kind, config, model, whole, asked)
        self.open[node] = orders.read_order(again.content)
        return again

    def checked(
        self,
        server_round: int,
        reply: Message,
        examples: Callable[[RecordDict], float],
        model: GlobalModel,
        max_staleness: int | None = None,
    ) -> Checked | None:
        """Return a reply that fits its ticket, which closes it; any other is refused.

        Args:
            server_round: the round that the reply counts in.
            reply: a client's answer to an order.
            examples: reads its weight; raises MessageError.
            model: as it is now.
            max_staleness: how far the version that it trained from may be behind that.
        """
        try:
            found = self._fitting(reply, examples, model)
            if max_staleness is not None and found.staleness > max_staleness:
                raise _Misfit("stale", f"{found.staleness} steps behind, at most {max_staleness} count")
            return found
        except _Misfit as misfit:
            self._books.refuse(server_round, reply.metadata.src_node_id, misfit.reason, misfit.detail)
            return None

    def _fitting(self, reply: Message, examples: Callable[[RecordDict], float], model: GlobalModel) -> Checked:
        node = reply.metadata.src_node_id
        order = self.open.get(node)
        if reply.has_error():
            raise _Misfit("error", str(reply.error.reason))
        content = records.unfolded(reply.content)
        try:
            answer = orders.read_answer(content)
            weight = 0.0 if answer.error or answer.needs_model else examples(content)
        except orders.MessageError as error:
            raise _Misfit("malformed", str(error)) from None
        if answer.needs_model:
            self._confirmed.pop(node, None)
            self._masks.pop(node, None)
            raise _Misfit("no model", "the client could not use the model that it was sent")
        if answer.error:
            self.tickets = max(self.tickets, answer.answered)  # this server began anew, and its tickets are old
            raise _Misfit("client error", answer.error)
        if order is None or answer.ticket != order.ticket:
            raise _Misfit("wrong ticket", f"ticket {answer.ticket}, open: {order and order.ticket}")
        if answer.version != order.version:
            raise _Misfit("wrong version", f"version {answer.version}, sent: {order.version}")
        if order.download and answer.tag != order.download.tag:
            raise _Misfit("wrong model", f"tag {answer.tag.hex()} for version {answer.version}")
        if order.download:
            self._confirmed[node] = answer.version
        if order.mask is not None:
            self._masks[node] = order.mask_version
        if order.mask_version != model.epochs.number:
            raise _Misfit(
                "other epoch", f"trained within the mask of epoch {order.mask_version}, now {model.epochs.number}"
            )
        if answer.lost_state:
            log(WARNING, "node %d has lost what it kept back of earlier updates", node)
        if answer.tier:
            self.tiers[node] = answer.tier
        del self.open[node]  # the same answer again does not fit it
        metrics = RecordDict(dict(content.metric_records))
        staleness = model.version - order.version
        return Checked(
            node, answer.ticket, weight, answer.payload, answer.buffers, metrics, order.download, staleness,
            answer.lost_state, answer.vote,
        )  # fmt: skip

    def accept(self, answer: Checked) -> None:
        """Say in the node's next order that its upload counted."""
        self._accepted[answer.node] = answer.ticket
        self._books.lost_states += answer.lost_state

    def evaluated(self, content: RecordDict, node: int, model: GlobalModel) -> None:
        """Take note of the version that a node has evaluated. Raises MessageError when it is not the newest."""
        if model.versions is None:
            return
        answer = orders.read_answer(content)
        if answer.tag != model.versions.tag:
            raise orders.MessageError(f"the client holds another model, tag {answer.tag.hex()}")
        self._confirmed[node] = answer.version
        if model.epochs.mask is not None:
            self._masks[node] = model.epochs.number

    def saved(self) -> State:
        """Return all of it, between two rounds."""
        meta = {
            "tickets": self.tickets,
            "accepted": pairs(self._accepted),
            "confirmed": pairs(self._confirmed),
            "tiers": pairs(self.tiers),
        }
        if self._masks:
            meta["masks"] = pairs(self._masks)
        opened = {
            str(node): as_array(records.content_to_bytes(RecordDict({"": ConfigRecord(orders.write_order(order))})))
            for node, order in self.open.items()
        }
        return State(opened, meta)

    def restore(self, state: State) -> None:
        """Take up what `saved` returned."""
        self.open = {
            int(node): orders.read_order(records.content_from_bytes(data.tobytes()))
            for node, data in state.arrays.items()
        }
        self.tickets = state.meta["tickets"]
        self.tiers = dict(state.meta.get("tiers", ()))
        self._accepted, self._confirmed = dict(state.meta["accepted"]), dict(state.meta["confirmed"])
        self._masks = dict(state.meta.get("masks", []))

    def _message(
        self,
        node: int,
        server_round: int,
        ticket: int,
        kind: str,
        config: Mapping[str, Any],
        model: GlobalModel,
        whole: bool = False,
        asked: Asked | None = None,
    ) -> Message:
        """Return an order to a node, with what brings it to the newest version; `whole`: with all arrays."""
        epoch, accepted = model.epochs.number, self._accepted.get(node, 0)
        order = Order(self._federation, ticket, server_round, epoch, model.version, accepted)
        order = order._replace(mask=model.epochs.coded(self._masks.get(node)))
        if asked:
            order = order._replace(drop=asked.drop, grow=asked.grow)
        if model.versions is not None:
            order = order._replace(download=model.versions.download(self._confirmed.get(node), whole))
        own = ConfigRecord({**config, "server-round": server_round, **orders.write_order(order)})
        content = RecordDict({self._configrecord_key: own})
        if order.download is None or order.download.base is None:
            content = RecordDict({self._arrayrecord_key: model.arrays, self._configrecord_key: own})
        return Message(content=content, message_type=kind, dst_node_id=node)


class _Misfit(Exception):
    """A reply that does not count."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
