"""A ClientApp as Flower's simulation engine runs it: in any process of a cluster, with all it needs in the message.

A client's state comes with the order and goes back with the reply, so the next order may go to another machine, and
no two machines need a file system in common.
"""

import traceback
from collections.abc import Mapping

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp

from fedpress.compression import entry_points
from fedpress.simulations.engines import _flower

STATE = "fedpress.state-of-client/"
"""Begins the keys of the records that are a client's state, between those of an order or a reply."""


def with_state(content: RecordDict, state: RecordDict) -> RecordDict:
    """Return the records of a message and those of a state in one."""
    return RecordDict({**content, **{STATE + key: record for key, record in state.items()}})


def split(content: RecordDict) -> tuple[RecordDict, RecordDict]:
    """Return what `with_state` was given."""
    own = {key: record for key, record in content.items() if not key.startswith(STATE)}
    state = {key.removeprefix(STATE): record for key, record in content.items() if key.startswith(STATE)}
    return RecordDict(own), RecordDict(state)


class RemoteApp(ClientApp):
    """The app that Flower's engine sends to its processes: small, since it travels with every message.

    An exception becomes the error that the inline engine makes of it, with the traceback in the lines after the first.

    Args:
        client_app: the real one, as "module:attribute"; loaded where it runs.
        run_config: what it finds in `context.run_config`.
    """

    def __init__(self, client_app: str, run_config: Mapping[str, UserConfigValue]) -> None:
        super().__init__()
        self._client_app = client_app
        self._run_config = dict(run_config)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        node = int(context.node_config["partition-id"]) + 1
        _flower.identify(context.run_id, node, 0)
        message.content, state = split(message.content)
        own = Context(context.run_id, node, context.node_config, state, dict(self._run_config))
        try:
            reply: Message = entry_points.load(self._client_app)(message, own)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            code = _flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, f"{reason}\n{traceback.format_exc()}"), reply_to=message)
        if reply.has_content():
            reply.content = with_state(reply.content, own.state)
        return reply
