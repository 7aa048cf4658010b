"""Orders and verdicts: one open ticket a node, the check of its reply, and the verdict on its last upload."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from logging import INFO, WARNING
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore import log

from fedpress.compression.errors import PayloadError
from fedpress.compression.messages import base_parts, orders, pieces, records
from fedpress.compression.messages.base_parts import BaseSource
from fedpress.compression.messages.orders import Download, Order
from fedpress.compression.tensors import buffer_codec
from fedpress.compression.tensors.layout import Layout
from fedpress.server._flower import ErrorCode
from fedpress.server.model.global_model import GlobalModel
from fedpress.server.model.mask_schedules import VoteRequest
from fedpress.server.rounds.accounting import Accounting
from fedpress.server.rounds.base_transfer import BaseTransfer

NO_ANSWER = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
"""Errors that the SuperLink gives in place of an answer, where a node is gone."""
GUESS_BITS = 32
"""Last bits of a ticket, which nobody else can know before it is sent; those before them are a number that rises."""
MOST_BYTES = 12
"""Largest size of a payload, in bytes for each entry of the vector: positions and values of all of them take less."""
SPARE_BYTES = 1 << 16
"""Added to that limit, for headers."""


class OpenOrder(NamedTuple):
    """What the answer to an order is checked and decoded by: not the model itself, which may be large."""

    order: Order  # without mask, snapshot and grid
    buffers: bytes  # all of the model in it, as `buffer_codec.pack` writes them: the answer has those that changed


class Upload(NamedTuple):
    """A reply that fits its ticket; its payload is still to be decoded."""

    node: int
    ticket: int
    weight: float
    payload: bytes
    buffers: bytes  # all of them, as `buffer_codec.pack` writes them
    content: RecordDict  # of the reply, beside the answer: metrics, and what else the app sends
    download: Download | None  # that the client trained from
    version: int  # of the model that it trained from
    staleness: int  # steps since that version
    lost_state: bool = False  # the client has lost its residual
    vote: bytes = b""  # on the mask


@dataclass
class Tickets:
    """Tickets, and the server's knowledge of each node.

    A ticket is a number that rises with each one, and 32 bits that are a hash of it and a secret: no node can name
    another one's ticket.

    Attributes:
        issued: number of tickets so far, or more: a server that begins anew counts on from what its nodes claim.
        secret: secret of this server; simulations derive it from the seed.
        claims: number of the last ticket that a node claims to have answered, where that is from an earlier server.
        open: open order of each node.
        accepted: ticket of each node's last accepted upload.
        versions: version of the model that a node has proved to hold.
        masks: version of the mask that a node has proved to have.
        tiers: tier of devices that a node has reported.
        bases: whether a node has shown to have what is not trained, where the model goes whole, or that it has not: it
            gets the rest alone. Until then, it is taken to have it, and is told its hash.
        makes_initial: whether a node has shown that it can make version 0 by itself, or that it cannot; until then, it
            is taken to, where clients of the downlink can.
    """

    issued: int = 0
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    claims: dict[int, int] = field(default_factory=dict)
    open: dict[int, OpenOrder] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    tiers: dict[int, str] = field(default_factory=dict)
    makes_initial: dict[int, bool] = field(default_factory=dict)
    bases: dict[int, bool] = field(default_factory=dict)

    def issue(self, node: int) -> int:
        """Return a new ticket, greater than all that this node has answered, by its own claim too."""
        self.issued += 1
        if self.claims.get(node, 0) >= self.issued:
            self.claims[node] += 1
        number = max(self.issued, self.claims.get(node, 0))
        guess = sha256(b"%b %d %d" % (self.secret, node, number)).digest()[: GUESS_BITS // 8]
        return number << GUESS_BITS | int.from_bytes(guess)

    def follow(self, node: int, answered: int) -> None:
        """Count on from what a node has answered: this server began anew, and its tickets are old for its nodes.

        A claim moves the tickets of the node that makes it; those of all nodes move as far as two nodes agree on.

        Args:
            node: id of the node.
            answered: ticket that it claims to have answered last.
        """
        self.claims[node] = max(self.claims.get(node, 0), answered >> GUESS_BITS)
        if len(self.claims) > 1:
            self.issued = max(self.issued, sorted(self.claims.values())[-2])

    def forget_model(self, node: int) -> int | None:
        """Assume that a node holds neither model nor mask, and return the version that it was believed to hold."""
        self.masks.pop(node, None)
        self.bases.pop(node, None)
        return self.versions.pop(node, None)


def largest_reply(layout: Layout) -> int:
    """Return the bytes that a reply may have at most: its update, its vote and its buffers."""
    return MOST_BYTES * (2 * layout.full.size + sum(spec.size for spec in layout.buffers)) + 4 * SPARE_BYTES


def unguessable() -> str:
    """Return a group for a message without a ticket, by which nobody else can name it.

    A message's id is a hash of it, and the SuperLink takes an answer from any registered node that knows the id and
    calls itself by the name of the node that was asked.
    """
    return secrets.token_hex(8)


class Orders:
    """Writer of orders and verifier of replies: at most one ticket is open per node.

    Args:
        federation: name of the federation; clients keep their state under it.
        arrayrecord_key: key in a message of the record with the model.
        configrecord_key: key of the record with the application's configuration, and the order.
        accounting: counts refusals and lost states.
        piece_bytes: bytes of the longest entry of a message that is not cut into pieces.
        base: pretrained weights that nodes without a copy are sent; None: there are none.

    Attributes:
        tickets: open orders, and the knowledge of each node.
    """

    def __init__(
        self,
        federation: str,
        arrayrecord_key: str,
        configrecord_key: str,
        accounting: Accounting,
        piece_bytes: int = pieces.LIMIT,
        base: BaseSource | None = None,
    ) -> None:
        self.tickets = Tickets()
        self._piece_bytes = piece_bytes
        self._pieces: dict[int, pieces.Pieces] = {}  # of what the orders of one version have in common
        self._pieces_version = -1
        self._base = BaseTransfer(base)
        self._federation = federation
        self._arrayrecord_key = arrayrecord_key
        self._configrecord_key = configrecord_key
        self._accounting = accounting

    def train(
        self,
        node: int,
        server_round: int,
        config: Mapping[str, Any],
        model: GlobalModel,
        vote: VoteRequest | None = None,
    ) -> Message:
        """Open a ticket for a node, and return the message with its order.

        Args:
            node: id of the node.
            server_round: number of the round.
            config: the application's configuration.
            model: the model to train.
            vote: vote on the mask to ask for; None: none is due.
        """
        tickets = self.tickets
        order = self._order(node, server_round, tickets.issue(node), model, vote=vote)
        tickets.open[node] = OpenOrder(_kept(order), model.sent_buffers)
        return self._message(node, order, MessageType.TRAIN, config, model)

    def evaluate(self, node: int, server_round: int, config: Mapping[str, Any], model: GlobalModel) -> Message:
        """Return the message that asks a node to evaluate the model.

        Args:
            node: id of the node.
            server_round: number of the round.
            config: the application's configuration.
            model: the model to evaluate.
        """
        message = self._message(node, self._order(node, server_round, 0, model), MessageType.EVALUATE, config, model)
        message.metadata.group_id = unguessable()
        return message

    def from_the_beginning(
        self, node: int, server_round: int, kind: str, config: Mapping[str, Any], model: GlobalModel
    ) -> Message:
        """Return an order again with the model from its beginning, for a client that could not use the delta.

        Args:
            node: id of the node.
            server_round: number of the round.
            kind: message type: train or evaluate.
            config: the application's configuration.
            model: the model of the order.
        """
        held = self.tickets.forget_model(node)
        self.tickets.bases[node] = False
        # A client believed to hold nothing was offered version 0, and has another one or none; or it lacks names and
        # shapes, and was sent all else.
        whole = held is None
        if not whole:
            log(WARNING, "node %d cannot get from version %s to %d by a delta", node, held, model.version)
        elif model.versions and model.versions.offers_initial and self.tickets.makes_initial.get(node, True):
            self._log_other_initial(node)
            self.tickets.makes_initial[node] = False
        return self._message(node, self._again(node, server_round, kind, model, whole), kind, config, model)

    def _again(self, node: int, server_round: int, kind: str, model: GlobalModel, whole: bool = False) -> Order:
        """Return the open order of a node, or an order to evaluate, once more."""
        if kind == MessageType.EVALUATE:
            return self._order(node, server_round, 0, model, whole)
        first = self.tickets.open[node].order
        order = self._order(node, first.round, first.ticket, model, whole, VoteRequest(first.drop, first.grow))
        self.tickets.open[node] = OpenOrder(_kept(order), model.sent_buffers)
        return order

    def with_base(
        self, reply: Message, server_round: int, kind: str, config: Mapping[str, Any], model: GlobalModel
    ) -> Message | None:
        """Return an order again with the part of the base that its node asks for; None: it asks for none, or in vain.

        Args:
            reply: reply of the node.
            server_round: number of the round.
            kind: message type: train or evaluate.
            config: the application's configuration.
            model: the model of the order.
        """
        node, tickets = reply.metadata.src_node_id, self.tickets
        if reply.has_error() or orders.ANSWER not in reply.content:
            return None
        try:
            answer = orders.read_answer(reply.content)
        except orders.MessageError:
            return None  # `verify` refuses it
        if not self._base.note(node, answer):
            return None
        if kind == MessageType.TRAIN and node not in tickets.open:
            return None
        return self._message(node, self._again(node, server_round, kind, model), kind, config, model)

    def verify(
        self,
        reply: Message,
        examples: Callable[[RecordDict], float],
        model: GlobalModel,
        server_round: int,
        max_staleness: int | None = None,
    ) -> Upload | None:
        """Return the upload of a reply that fits its ticket, which closes it; any other reply is refused.

        Args:
            reply: a client's answer to an order.
            examples: returns the weight of a reply's records; raises MessageError.
            model: the present model.
            server_round: round that the reply counts in.
            max_staleness: most steps that the version it trained from may be behind; None: any.
        """
        try:
            upload = self._upload(reply, examples, model)
            if max_staleness is not None and upload.staleness > max_staleness:
                raise _RefusedReply("stale", f"{upload.staleness} steps behind, at most {max_staleness} count")
            return upload
        except _RefusedReply as refused:
            self._accounting.refuse(server_round, reply.metadata.src_node_id, refused.reason, refused.detail)
        except Exception as error:  # whatever a client has sent costs this client, and nobody else
            self._accounting.refuse_unexpected(server_round, reply.metadata.src_node_id, error)
        return None

    def _upload(self, reply: Message, examples: Callable[[RecordDict], float], model: GlobalModel) -> Upload:
        node, tickets = reply.metadata.src_node_id, self.tickets
        open_order = tickets.open.get(node)
        if reply.has_error():
            silent = reply.error.code in NO_ANSWER
            raise _RefusedReply("unreachable" if silent else "error", records.reason_of(reply))
        try:
            content = records.unfolded(pieces.join(reply.content))
            answer = orders.read_answer(content)
            weight = 0.0 if answer.error or answer.needs_model or answer.needs_base else examples(content)
        except orders.MessageError as error:
            raise _RefusedReply("malformed", str(error)) from None
        if answer.needs_base:
            self._base.note(node, answer)
            known = "" if self._base.agreed else "; this server knows of no `base`"
            raise _RefusedReply(
                "no base", f"it has {answer.base_bytes:,} bytes of the base of SHA-256 {answer.needs_base[:64]}{known}"
            )
        self._base.note(node, answer)
        if answer.needs_model:
            tickets.forget_model(node)
            raise _RefusedReply("no model", "the client could not use the model that it was sent")
        if answer.error:
            if answer.answered:
                tickets.follow(node, answer.answered)
            raise _RefusedReply("client error", answer.error)
        if open_order is None or answer.ticket != open_order.order.ticket:
            known_ticket = open_order and open_order.order.ticket
            raise _RefusedReply("wrong ticket", f"ticket {answer.ticket}, open: {known_ticket}")
        order = open_order.order
        if answer.version != order.version:
            raise _RefusedReply("wrong version", f"version {answer.version}, sent: {order.version}")
        if order.download and answer.tag != order.download.tag:
            raise _RefusedReply("wrong model", f"tag {answer.tag[:8].hex()} for version {answer.version}")
        if order.download:
            tickets.versions[node] = answer.version
        elif model.layout.frozen:
            tickets.bases[node] = True
        if order.mask is not None:
            tickets.masks[node] = order.mask_version
        if order.mask_version != model.masks.version:
            raise _RefusedReply(
                "other mask", f"trained within the mask of version {order.mask_version}, now {model.masks.version}"
            )
        for name, data, entries in (
            ("update", answer.payload, model.layout.full.size),
            ("vote", answer.vote, model.layout.full.size),
            ("buffers", answer.buffers, sum(spec.size for spec in model.layout.buffers)),
        ):
            if len(data) > MOST_BYTES * entries + SPARE_BYTES:
                raise _RefusedReply("undecodable", f"{name} of {len(data)} bytes, for {entries} entries")
        try:
            buffers = buffer_codec.unpack_changes(answer.buffers, open_order.buffers, model.layout)
        except PayloadError as error:
            raise _RefusedReply("undecodable", f"{type(error).__name__}: {error}") from None
        if answer.lost_state:
            log(WARNING, "node %d has lost its residual of earlier updates", node)
        if answer.tier:
            tickets.tiers[node] = answer.tier
        del tickets.open[node]  # so that a repeated answer is refused
        others = RecordDict({name: record for name, record in content.items() if name != orders.ANSWER})
        return Upload(
            node, answer.ticket, weight, answer.payload, buffers, others, order.download, order.version,
            model.version - order.version, answer.lost_state, answer.vote,
        )  # fmt: skip

    def accept(self, upload: Upload) -> None:
        """Record that an upload counted, for the verdict in the node's next order."""
        self.tickets.accepted[upload.node] = upload.ticket
        self._accounting.lost_states += upload.lost_state

    def evaluated(self, content: RecordDict, node: int, model: GlobalModel) -> None:
        """Record the version that a node has evaluated.

        Args:
            content: records of the reply.
            node: id of the node.
            model: the model that it was asked to evaluate.

        Raises:
            MessageError: the node has evaluated another model.
        """
        answer = None if orders.ANSWER not in content else orders.read_answer(content)
        if answer and answer.needs_base:
            raise orders.MessageError("the client lacks the pretrained base")
        if model.versions is None:
            return
        answer = orders.read_answer(content)
        if answer.tag != model.versions.tag:
            raise orders.MessageError(f"the client holds another model, tag {answer.tag[:8].hex()}")
        self.tickets.versions[node] = model.version
        if model.masks.mask is not None:
            self.tickets.masks[node] = model.masks.version

    def _order(
        self,
        node: int,
        server_round: int,
        ticket: int,
        model: GlobalModel,
        whole: bool = False,
        vote: VoteRequest | None = None,
    ) -> Order:
        """Return an order with the download to the newest version; `whole`: with all arrays."""
        tickets, vote = self.tickets, vote or VoteRequest()
        download = None
        if model.versions is not None:
            agreed = tickets.makes_initial.get(node, True)
            download = model.versions.download(tickets.versions.get(node), whole, agreed)
        known = tickets.bases.get(node, bool(model.layout.frozen))
        frozen = model.frozen_digest if model.versions is None and known else b""
        return Order(
            self._federation, ticket, server_round, model.masks.version, model.version, tickets.accepted.get(node, 0),
            download, model.masks.coded(tickets.masks.get(node)), vote.drop, vote.grow, frozen,
        )  # fmt: skip

    def _log_other_initial(self, node: int) -> None:
        """Log that a node has no version 0 of its own like the server's: at length for the first such node."""
        if False not in self.tickets.makes_initial.values():
            log(
                WARNING,
                "node %d has other initial weights than the server, or none, and is sent the whole model; the ledger"
                " counts it. Weights that are the same everywhere come from a file (`init` in the scenario and in the"
                " node's settings), or from the same PyTorch on the same kind of processor",
                node,
            )
        else:
            log(INFO, "node %d has other initial weights than the server, too, and is sent the whole model", node)

    def _message(self, node: int, order: Order, kind: str, config: Mapping[str, Any], model: GlobalModel) -> Message:
        part = self._base.part(node)
        if part and not part.is_last:  # the model comes with the last part
            order = order._replace(download=order.download and Download(order.download.tag, 0), mask=None)
        if self._piece_bytes != pieces.LIMIT:
            order = order._replace(piece=self._piece_bytes)
        entries = ConfigRecord({**config, "server-round": order.round, **orders.write_order(order)})
        content = RecordDict()
        if (order.download is None or order.download.base is None) and (part is None or part.is_last):
            arrays = model.arrays
            if order.frozen:
                arrays = ArrayRecord({name: array for name, array in arrays.items() if name not in model.frozen})
            content[self._arrayrecord_key] = arrays
        content[self._configrecord_key] = entries
        if part:
            content[orders.BASE] = base_parts.write(part)
        if self._pieces_version != model.version or part:
            self._pieces, self._pieces_version = {}, -1 if part else model.version
        content = pieces.cut(content, self._piece_bytes, self._pieces)
        return Message(content=content, message_type=kind, dst_node_id=node)


def _kept(order: Order) -> Order:
    """Return an order as an `OpenOrder` holds it."""
    download, mask = order.download, None if order.mask is None else b""
    if download is not None:
        of_version = download.base is not None and download.base >= 0
        download = download._replace(delta=download.delta if of_version else b"", buffers=b"", grid=b"")
    return order._replace(download=download, mask=mask)


class _RefusedReply(Exception):
    """A reply that does not count."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
