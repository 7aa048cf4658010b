"""Flower's SuperNode, with a repair: a message whose run ends while it is fetched leaves nothing behind.

Flower 1.41 cleans up after a fetch that fails with an Exception, but RunNotRunningException is a BaseException: the
message stays, and so does its task. The task's ClientApp fails on it, that failure is taken for the reply to the next
message, and from then on every reply is one message late. A run that waits for the replies never ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedpress.simulations.deploy import _flower

RUN_ENDED = "its run has ended"
"""Text in the log for such a message."""


def repaired(pull_and_store_message: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return Flower's function with a clean-up that also works where the run ends during the fetch."""
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
