"""ClientApp on Flower's simulation engine: it runs in any process of a cluster, with its state in the message.

A client's state comes with the order and goes back with the reply, so the next order may go to another machine, and
machines need no shared file system.
"""

import traceback
from collections.abc import Mapping

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp

from fedpress.compression import entry_points
from fedpress.simulations.engines import _flower

STATE = "fedpress.state-of-client/"
"""Prefix of the keys of a client's state, among the records of an order or a reply."""


def with_state(content: RecordDict, state: RecordDict) -> RecordDict:
    """Return the records of a message and of a state as one `RecordDict`; `split` is its inverse.

    Args:
        content: Records of an order or a reply.
        state: Records that the client keeps.
    """
    return RecordDict({**content, **{STATE + key: record for key, record in state.items()}})


def split(content: RecordDict) -> tuple[RecordDict, RecordDict]:
    """Return content and state, the arguments of `with_state`."""
    message = {key: record for key, record in content.items() if not key.startswith(STATE)}
    state = {key.removeprefix(STATE): record for key, record in content.items() if key.startswith(STATE)}
    return RecordDict(message), RecordDict(state)


class RemoteApp(ClientApp):
    """App that Flower's engine sends to its processes: small, since it travels with every message.

    An exception becomes the same error as on the inline engine, with the traceback in the lines after the first.

    Args:
        client_app: The real ClientApp, as "module:attribute"; loaded in the process that runs it.
        run_config: Its `context.run_config`.
    """

    def __init__(self, client_app: str, run_config: Mapping[str, UserConfigValue]) -> None:
        super().__init__()
        self._client_app = client_app
        self._run_config = dict(run_config)

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the client's reply to a message, with its state.

        Args:
            message: An order, with the client's state.
            context: Flower's, whose state stays empty.
        """
        node = int(context.node_config["partition-id"]) + 1
        _flower.identify(context.run_id, node, 0)
        message.content, state = split(message.content)
        client_context = Context(context.run_id, node, context.node_config, state, dict(self._run_config))
        try:
            reply: Message = entry_points.load(self._client_app)(message, client_context)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            code = _flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, f"{reason}\n{traceback.format_exc()}"), reply_to=message)
        if reply.has_content():
            reply.content = with_state(reply.content, client_context.state)
        return reply
