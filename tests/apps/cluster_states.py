"""Counts on a Ray cluster: `cluster_states.py HOST:PORT` prints what four clients answered in each of ten rounds."""

import json
import sys

from flwr.app import ConfigRecord, Message, RecordDict

from fedpress.simulations.engines.flower import FlowerGrid

CLIENTS, ROUNDS = 4, 10


def question(node: int, kind: str) -> Message:
    return Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type=kind)


def main(address: str) -> None:
    with FlowerGrid("tests.apps.engine_client:app", clients=CLIENTS, address=address) as grid:
        rounds = []
        for _ in range(ROUNDS):
            replies = grid.send_and_receive([question(node, "query.count") for node in range(1, CLIENTS + 1)])
            rounds.append({reply.metadata.src_node_id: dict(reply.content["metrics"]) for reply in replies})  # type: ignore
        (failed,) = grid.send_and_receive([question(2, "query.fail")])
        (died,) = grid.send_and_receive([question(2, "query.die")])
        after = grid.send_and_receive([question(node, "query.count") for node in range(1, CLIENTS + 1)])
        counts = [reply.content["metrics"]["count"] for reply in after]  # type: ignore
        reasons = [failed.error.reason, died.error.reason]
        print(json.dumps({"rounds": rounds, "reasons": reasons, "after": counts}))


if __name__ == "__main__":
    main(sys.argv[1])
