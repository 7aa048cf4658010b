"""A fleet that is offline for its first minutes: the server waits, over restarts, and says so."""

import json
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from tests.apps.service_process import Service, fedpress, process, until

from fedpress.simulations.deploy import children, flower_processes
from fedpress.simulations.results.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

OVERRIDES = ["clients=2", "sampling.clients_per_round=2", "rounds=2", "students.tiers=[]", "partition.sizes=equal"]


def test_a_fleet_that_vanishes_before_its_first_reply_is_waited_for(tmp_path: Path) -> None:
    link, metrics = flower_processes.free_port(), flower_processes.free_port()
    assert fedpress(tmp_path, "keys", "init", "keys", "--host", "localhost").returncode == 0
    (tmp_path / "server.yaml").write_text(
        f"scenario: digits\noverrides: {json.dumps(OVERRIDES)}\n"
        f"listen: 127.0.0.1:{link}\nmetrics: 127.0.0.1:{metrics}\n"
    )
    for number in (0, 1):
        assert fedpress(tmp_path, "keys", "node", "keys", f"node-{number}").returncode == 0
        (tmp_path / f"client-{number}.yaml").write_text(
            f"superlink: 127.0.0.1:{link}\nthreads: 1\nca: keys/ca.crt\nkey: keys/nodes/node-{number}\n"
            f"state: client-{number}\npartition: {number}\n"
        )
    running: list[Service] = []

    def start(*arguments: str, name: str) -> Service:
        running.append(Service(tmp_path, *arguments, name=name))
        return running[-1]

    def health() -> dict[str, object]:
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://127.0.0.1:{metrics}/health") as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found
        return {}

    try:
        server = start("server", "server.yaml", name="server")
        clients = [start("client", f"client-{number}.yaml", name=f"client-{number}") for number in (0, 1)]
        until("a run begins", lambda: "is submitted" in server.text, server, *clients)
        assert "checking the scenario" in server.text
        at_work = [tmp_path / f"client-{number}" / "flwr" for number in (0, 1)]
        until("both train", lambda: all(process(home, "flwr-clientapp") for home in at_work), server, *clients)
        for client, home in zip(clients, at_work, strict=True):  # all at once, as if the power had failed
            client.process.kill()
            client.process.wait()
            children.end_all(home, wait=-children.FORCE)
        until("the server says that it waits", lambda: "no reply yet in round 1" in server.text, server)
        until("its state is waiting", lambda: health().get("state") == "waiting", server)
        assert server.stop() == 143

        server = start("server", "server.yaml", name="server-again")
        until("the run is submitted again", lambda: "is submitted" in server.text, server)
        until("it waits again", lambda: health().get("state") == "waiting", server)
        clients = [start("client", f"client-{number}.yaml", name=f"client-{number}") for number in (0, 1)]
        until("the run is finished", lambda: server.process.poll() is not None, *clients)
        assert server.process.returncode == 0, server.text
        results = RunFolder(tmp_path / "run").load_results()
        assert (results.status, results.waiting) == ("finished", "")
        assert [(r.round, r.replies) for r in results.rounds] == [(1, 2), (2, 2)]  # no round was used up by waiting
    finally:
        for service in running:
            with suppress(Exception):
                if service.process.poll() is None:
                    service.stop()
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()
        for state in ("server-state", "client-0", "client-1"):
            children.end_all(tmp_path / state / "flwr", wait=0.0)
