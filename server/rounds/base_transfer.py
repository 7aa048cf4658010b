"""Transfer of a pretrained base to the nodes that have none: which node lacks how much of it, and what it is sent."""

from fedpress.compression.messages.base_parts import BasePart, BaseSource
from fedpress.compression.messages.orders import Answer

SPARE_PARTS = 2
"""Parts of a base that a node is sent for one order beyond those that the base has."""


class BaseTransfer:
    """What nodes lack of the base, as they say.

    Args:
        base: The base; None: there is none, and no node is sent anything.
    """

    def __init__(self, base: BaseSource | None) -> None:
        self._base = base
        self._lacks: dict[int, int] = {}  # nodes that lack the base: the bytes of it that they have
        self._sent: dict[int, tuple[int, int]] = {}  # by node: ticket of the last part, and number of parts for it

    @property
    def agreed(self) -> bool:
        """Whether the federation has agreed on a base."""
        return self._base is not None

    def note(self, node: int, answer: Answer) -> bool:
        """Remember what a node has of the base, and return whether the next part is to be sent in this round.

        A node may claim anything: for one order it gets as many parts as the base has, and `SPARE_PARTS` more.

        Args:
            node: Id of the node.
            answer: Its answer.
        """
        base = self._base
        if base is None or not answer.needs_base or answer.needs_base != base.sha256:
            self._lacks.pop(node, None)
            return False
        self._lacks[node] = answer.base_bytes
        ticket, count = self._sent.get(node, (answer.ticket, 0))
        count = count + 1 if ticket == answer.ticket else 1
        self._sent[node] = answer.ticket, count
        return count <= base.parts + SPARE_PARTS

    def part(self, node: int) -> BasePart | None:
        """Return the next part for a node; None: it lacks nothing.

        Args:
            node: Id of the node.
        """
        return self._base.part(self._lacks[node]) if self._base and node in self._lacks else None
