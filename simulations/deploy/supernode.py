"""Flower's SuperNode, with a repair: an order whose run ends while it is fetched leaves nothing behind.

Flower 1.41 cleans up after a fetch that fails with an Exception, but RunNotRunningException is a BaseException: the
order stays, and so does its task. The task's ClientApp fails on it, that failure is taken for the answer to the next
order, and from then on every answer waits until one more order has come. A run that waits for them waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedpress.simulations.deploy import _flower

RUN_ENDED = "its run has ended"
"""What the log says of such an order."""


def repaired(pull_and_store_message: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return Flower's function, whose clean-up now sees the end of a run while it fetches an order."""
    run_ended = _flower.run_ended()

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*given: Any) -> Any:
            try:
                return call(*given)
            except run_ended as error:
                raise RuntimeError(RUN_ENDED) from error

        return fails

    def pulls(**given: Any) -> int | None:
        for name in ("pull_object", "confirm_message_received"):
            given[name] = failing(given[name])
        return pull_and_store_message(**given)

    return pulls


def main() -> None:
    """Run `flower-supernode`; its arguments are this command's."""
    _flower.run_supernode(repaired)


if __name__ == "__main__":
    main()
