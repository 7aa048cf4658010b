"""What the grids of both engines have in common: nodes are clients, numbered from 1, and there are no others."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedpress.simulations.engines.inline import InlineGrid


def question(node: int) -> Message:
    return Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type="query.count")


@pytest.mark.parametrize(("clients", "workers"), [(0, 1), (1, 0), (-3, 2)])
def test_neither_clients_nor_workers_may_be_none(clients: int, workers: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1; they are {clients} and {workers}"):
        InlineGrid("tests.apps.engine_client:app", clients=clients, workers=workers)


def test_nodes_are_numbered_from_one_and_a_message_to_another_is_refused() -> None:
    with InlineGrid("tests.apps.engine_client:app", clients=2, workers=1) as grid:
        assert grid.get_node_ids() == [1, 2]
        for node in (0, 3, -1):
            with pytest.raises(ValueError, match=f"there is no node {node}; this grid has nodes 1 to 2"):
                grid.push_messages([question(node)])


def test_a_message_of_the_grid_is_flowers_own() -> None:
    with InlineGrid("tests.apps.engine_client:app", clients=2, workers=1) as grid:
        content = RecordDict({"config": ConfigRecord({"a": 1})})
        message = grid.create_message(content, "query.count", 2, "group", ttl=60.0)
        metadata = message.metadata
        assert (metadata.dst_node_id, metadata.message_type, metadata.group_id) == (2, "query.count", "group")
        assert metadata.ttl == 60.0 and message.content == content
        (reply,) = grid.send_and_receive([message])
        assert reply.metadata.src_node_id == 2 and grid.run.run_id == 1
