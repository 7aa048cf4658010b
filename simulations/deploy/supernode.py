"""Flower's SuperNode, with a repair and a restriction.

An app that the node does not allow (`fedpress.client.workloads`) is not installed: the server gets an error for the
order, with the reason.

The repair: a message whose run ends while it is fetched leaves nothing behind.

Flower 1.41 cleans up after a fetch that fails with an Exception, but RunNotRunningException is a BaseException: the
message stays, and so does its task. The task's ClientApp fails on it, that failure is taken for the reply to the next
message, and from then on every reply is one message late. A run that waits for the replies never ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fedpress.client import workloads
from fedpress.simulations.deploy import _flower

RUN_ENDED = "its run has ended"
"""Text in the log for such a message."""
REFUSED = "the server's app is refused"
"""Text in the log for an app that this node does not run."""


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


def restricted(pull_and_store_message: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return Flower's function with a check of the app of each new run, before anything of it is used."""

    def pulls(**given: Any) -> int | None:
        allowed, orders = workloads.listed(given["node_config"]), []
        receive, get_run, get_fab = given["receive"], given["get_run"], given["get_fab"]

        def receive_order() -> Any:
            received = receive()
            if received is not None:
                orders.append(received[0])
            return received

        def get_checked_run(*asked: Any) -> Any:
            run = get_run(*asked)
            if allowed is not None and not _flower.is_of_client_app(run):
                raise workloads.WorkloadRefused("the server's run is none of a ClientApp, which this node does not run")
            return run

        def get_checked_fab(*asked: Any) -> Any:
            fab = get_fab(*asked)
            workloads.check_app(fab.content, allowed)
            return fab

        given |= {"receive": receive_order, "get_run": get_checked_run, "get_fab": get_checked_fab}
        try:
            return pull_and_store_message(**given)
        except workloads.WorkloadRefused as error:
            from flwr.supercore import log  # the daemon, which imports this module, does without Flower

            log(logging.ERROR, "%s: %s", REFUSED, error)
            return _flower.answer_with_error(orders[0], str(error), given["state"], given["object_store"])

    return pulls


def main() -> None:
    """Run `flower-supernode`; its arguments are this command's."""
    _flower.run_supernode(lambda original: restricted(repaired(original)))


if __name__ == "__main__":
    main()
