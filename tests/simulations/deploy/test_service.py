"""The service as a user has it: `fedpress keys`, `server` and `client` as processes over TLS, and what befalls them.

One deployment lives through everything, which takes a while; each test then looks at one thing in its record.
"""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from tests.apps.service_process import PATIENCE, Service, fedpress, process, until
from tests.apps.wrong_clock import Clock

from fedpress.simulations.deploy import children, flower_processes
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

OVERRIDES = [
    "clients=2", "sampling.clients_per_round=2", "rounds=5", "students.tiers=[]", "density=0.05",
    "partition.sizes=equal",
]  # fmt: skip
SLOW_SECONDS = 200.0
"""How far client 1's clock is behind: less than the five minutes that a SuperLink allows."""

BROKEN = """
from fedpress.simulations.tasks.digits import Digits
class Broken(Digits):
    name = "broken"
    def data(self):
        raise RuntimeError("the disk with the data is not mounted")
"""


@dataclass
class Story:
    """What happened."""

    folder: Path
    results: Results
    server_says: str
    clients_say: list[str]
    stranger_says: str
    broken_says: str
    misled_says: str
    codes: dict[str, int] = field(default_factory=dict)
    left: dict[str, dict[int, str]] = field(default_factory=dict)
    metrics: str = ""
    client_metrics: str = ""
    health: dict[str, object] = field(default_factory=dict)
    second_server: str = ""
    outside: dict[str, int] = field(default_factory=dict)
    without_tls: str = ""
    revoked_says: str = ""
    listed: list[dict[str, str]] = field(default_factory=list)
    daemon_bytes: int = 0
    oversized: str = ""
    hasty_says: str = ""


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def status_from_elsewhere(port: int, path: str) -> int:
    """What a SuperLink answers to a machine with another address than its own."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    asked = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, source_address=("127.0.0.9", 0), context=anybody)
    try:
        asked.request("POST", f"/v1/{path}", body=b"", headers={"Content-Type": "application/x-protobuf"})
        return asked.getresponse().status
    finally:
        asked.close()


def answer_without_tls(port: int) -> str:
    """What a SuperLink says to a plain HTTP request."""
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        asked.request("POST", "/v1/fleet/pull-messages")
        return str(asked.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        asked.close()


def answer_to_an_oversized_message(folder: Path, port: int, node: int, size: int) -> str:
    """What a SuperLink answers to a registered node, with node-0's key, whose message is too large."""
    key = load_ssh_private_key((folder / "keys" / "nodes" / "node-0").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    ca = (folder / "keys" / "ca.crt").read_bytes()
    auth = NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(f"127.0.0.1:{port}", False, ca, [auth]) as client:
        heartbeat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=60.0)
        assert client.SendNodeHeartbeat(heartbeat).success  # it is let in
        with pytest.raises(httpx.HTTPStatusError) as refused:
            client.PushObject(PushObjectRequest(node=Node(node_id=node), object_id="?", object_content=bytes(size)))
        assert client.SendNodeHeartbeat(heartbeat).success  # and is so still
    return f"{refused.value.response.status_code} {refused.value.response.text}"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("service")
    link, metrics, client_metrics = (flower_processes.free_port() for _ in range(3))
    assert fedpress(folder, "keys", "init", "keys", "--host", "localhost").returncode == 0
    assert fedpress(folder, "keys", "init", "others", "--host", "localhost").returncode == 0
    for name in ("node-0", "node-1", "revoked"):
        assert fedpress(folder, "keys", "node", "keys", name).returncode == 0
    assert fedpress(folder, "keys", "node", "others", "stranger").returncode == 0
    (folder / "server.yaml").write_text(
        f"scenario: digits\noverrides: {json.dumps(OVERRIDES)}\nlisten: 127.0.0.1:{link}\n"
        f"metrics: 127.0.0.1:{metrics}\noperators: [192.0.2.0/24]\nmessage_mib: 1\n"
    )
    common = f"superlink: 127.0.0.1:{link}\nthreads: 1\n"
    for number in (0, 1):
        (folder / f"client-{number}.yaml").write_text(
            f"{common}ca: keys/ca.crt\nkey: keys/nodes/node-{number}\nstate: client-{number}\npartition: {number}\n"
            + (f"metrics: 127.0.0.1:{client_metrics}\n" if number == 0 else "")
        )
    stranger = f"{common}key: others/nodes/stranger\n"
    (folder / "stranger.yaml").write_text(f"{stranger}ca: keys/ca.crt\nstate: stranger\n")
    (folder / "revoked.yaml").write_text(f"{common}ca: keys/ca.crt\nkey: keys/nodes/revoked\nstate: revoked\n")
    (folder / "hasty.yaml").write_text(f"{stranger}ca: keys/ca.crt\nstate: hasty\n")
    (folder / "misled.yaml").write_text(f"{stranger}ca: others/ca.crt\nstate: misled\n")

    (folder / "task.py").write_text(BROKEN)
    (folder / "broken-scenario.yaml").write_text(
        "task: task:Broken\nclients: 2\nrounds: 1\nsampling: {clients_per_round: 2}\n"
    )
    (folder / "broken.yaml").write_text(
        f"scenario: broken-scenario.yaml\nlisten: 127.0.0.1:{flower_processes.free_port()}\nmetrics: null\n"
        "state: broken\nout: broken-run\n"
    )
    (folder / "keys" / "nodes" / "damaged.pub").write_text("ssh-rsa AAAA")
    running: list[Service] = []

    slow, hasty = Clock(folder / "slow-clock", -SLOW_SECONDS), Clock(folder / "hasty-clock", 60.0)
    changes = {"client-1": slow.environment, "hasty": hasty.environment}

    def start(*arguments: str, name: str) -> Service:
        running.append(Service(folder, *arguments, name=name, changes=changes.get(name, {})))
        return running[-1]

    home = folder / "server-state" / "flwr"
    run = RunFolder(folder / "run")

    def round_is(number: int) -> bool:
        with suppress(Exception):
            return len(run.load_results().rounds) >= number
        return False

    def training(number: int) -> bool:
        return process(folder / f"client-{number}" / "flwr", "flwr-clientapp") is not None

    try:
        server = start("server", "server.yaml", name="server")
        clients = [start("client", f"client-{number}.yaml", name=f"client-{number}") for number in (0, 1)]
        outsiders = [start("client", f"{name}.yaml", name=name) for name in ("stranger", "misled", "hasty")]
        broken = start("server", "broken.yaml", name="broken")
        told = Story(folder, None, "", [], "", "", "")  # type: ignore[arg-type]

        until("the server listens", lambda: "is submitted" in server.text, server, *clients)
        revoked = fedpress(folder, "keys", "revoke", "keys", "revoked", "--superlink", f"127.0.0.1:{link}")
        assert revoked.returncode == 0, revoked.stderr
        outsiders.append(start("client", "revoked.yaml", name="revoked"))
        told.second_server = fedpress(folder, "server", "server.yaml").stderr

        # Round 2: the ServerApp's process is killed while clients train.
        until("round 1 is over", lambda: round_is(1), server, *clients)
        until("a wrong clock is named", lambda: "the clock of this device" in outsiders[2].text, server, *outsiders)
        hasty.set(0.0)
        until("the metrics show it", lambda: "fedpress_round 1.0" in get(metrics, "/metrics"), server, *clients)
        told.metrics, told.client_metrics = get(metrics, "/metrics"), get(client_metrics, "/metrics")
        told.health = json.loads(get(metrics, "/health"))
        told.outside = {
            path: status_from_elsewhere(link, path) for path in ("control/list-nodes", "fleet/pull-messages")
        }
        told.without_tls = answer_without_tls(link)
        node = json.loads(get(client_metrics, "/health"))["node"]
        for _ in range(2):
            told.oversized = answer_to_an_oversized_message(folder, link, node, 2**20)
        told.daemon_bytes = children.memory_of(clients[0].process.pid)
        until("a client trains", lambda: training(0) or training(1), server, *clients)
        kill(process(home, "flwr-serverapp"))
        until("the server sees it", lambda: "the ServerApp's process is gone" in server.text, server, *clients)

        # Round 3: the SuperLink is killed.
        until("round 2 is over", lambda: round_is(2), server, *clients)
        until("a client trains", lambda: training(0) or training(1), server, *clients)
        kill(process(home, "deploy.superlink"))

        # The server is stopped, and started again.
        until("round 3 is over", lambda: round_is(3), server, *clients)
        listed = fedpress(folder, "keys", "list", "keys", "--superlink", f"127.0.0.1:{link}", "--json", "nodes.json")
        assert listed.returncode == 0, listed.stderr
        told.listed = json.loads((folder / "nodes.json").read_text())
        told.codes["stopped server"] = server.stop()
        told.left["stopped server"] = children.belonging_to(home)
        told.results = run.load_results()
        told.codes["interrupted"] = int(told.results.status == "interrupted")
        server = start("server", "server.yaml", name="server")

        # Round 4: a client's daemon is killed while it trains.
        new_run = re.compile(r"run (\d+) is submitted; it goes on after round 3")
        until("the run is submitted anew", lambda: new_run.search(server.text), server, *clients)
        found = new_run.search(server.text)
        until(
            "client 1 trains in it",
            lambda: found and f"[RUN {found[1]}" in (folder / "client-1" / "supernode.log").read_text() and training(1),
            server,
            *clients,
        )
        clients[1].process.kill()
        clients[1].process.wait()
        clients[1] = start("client", "client-1.yaml", name="client-1")
        until("the run is finished", lambda: server.process.poll() is not None, *clients)
        told.codes["finished server"] = server.process.returncode
        told.left["finished server"] = children.belonging_to(home)
        told.results, told.server_says = run.load_results(), server.text
        until(  # its last attempts may fall into the times without a server
            "the clock is no more what is wrong",
            lambda: re.search(
                r"the clock of this device.*\n(.*\n)*.*(its key \(stranger\)|cannot reach)", outsiders[2].text
            ),
            *outsiders,
        )
        for service in [*clients, *outsiders]:
            told.codes[service.log.stem] = service.stop()
            told.left[service.log.stem] = children.belonging_to(folder / service.log.stem / "flwr")
        told.codes["broken"], told.broken_says = broken.process.wait(timeout=PATIENCE), broken.text
        told.left["broken"] = children.belonging_to(folder / "broken" / "flwr")
        told.clients_say = [client.text for client in clients]
        told.stranger_says, told.misled_says, told.hasty_says, told.revoked_says = (one.text for one in outsiders)
        yield told
    finally:
        for service in running:
            with suppress(subprocess.TimeoutExpired):
                if service.process.poll() is None:
                    service.stop()
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()
        for state in ("server-state", "client-0", "client-1", "stranger", "misled", "hasty", "revoked", "broken"):
            children.end_all(folder / state / "flwr", wait=0.0)


def test_the_run_ends(story: Story) -> None:
    assert story.codes["finished server"] == 0
    assert story.results.status == "finished"
    assert "the run is finished" in story.server_says
    assert (story.folder / "run" / "report.html").exists()
    assert not (story.folder / "run" / "state").exists()  # checkpoints are gone


def test_each_round_is_as_on_the_inprocess_engine(story: Story, tmp_path: Path) -> None:
    """Killed ServerApp, killed SuperLink, stopped server: the same replies count, once each."""
    alone = runner.simulate(scenario.load("digits", [*OVERRIDES, "rounds=3"]), tmp_path / "run")
    before = story.results.rounds[:3]  # round 4 is that of the killed client
    assert [(r.round, r.replies, r.refused) for r in before] == [(r.round, r.replies, r.refused) for r in alone.rounds]
    for deployed, simulated in zip(before, alone.rounds, strict=True):
        assert deployed.accuracy == pytest.approx(simulated.accuracy, abs=0.01)
        assert deployed.loss == pytest.approx(simulated.loss, rel=0.01)


def test_a_killed_client_costs_its_reply_and_comes_back(story: Story) -> None:
    assert [(r.replies, r.reasons) for r in story.results.rounds[3:]] == [(1, {"unreachable": 1}), (2, {})]
    assert "stopped what an earlier client had left running" in story.clients_say[1]
    after = story.clients_say[1].split("stopped what an earlier client had left running")[1]
    assert "connected: node" in after and "refused" not in after  # its SuperNode has signed off: no waiting
    assert len(set(re.findall(r"connected: node (\d+)", story.clients_say[1]))) == 1
    assert story.results.lost_states == 0


def test_the_server_says_what_happened(story: Story) -> None:
    for text in (
        "registered node-0, node-1",
        "warning: damaged is not registered: ",
        "waiting for nodes: ",
        "the ServerApp's process is gone",
        "it goes on after round 1",
        "the SuperLink has ended",
        "it goes on after round 3",
    ):
        assert text in story.server_says
    assert story.codes["stopped server"] == 143
    assert story.codes["interrupted"]


def test_nothing_is_left_behind(story: Story) -> None:
    assert story.left == dict.fromkeys(story.left, {})
    assert {story.codes[name] for name in ("client-0", "client-1", "stranger", "misled", "hasty", "revoked")} == {0}


def test_others_are_kept_out_and_told_why(story: Story) -> None:
    assert "refused: the server does not let this node in: its key (stranger) is not registered" in story.stranger_says
    assert "is not trusted: it is of another authority than" in story.misled_says
    assert "the server does not let this node in: its key (revoked) is not registered" in story.revoked_says
    assert story.without_tls in ("RemoteDisconnected", "BadStatusLine", "ConnectionResetError")
    for text in (story.stranger_says, story.misled_says, story.revoked_says):
        assert "it goes on trying" in text and "connected: node" not in text
    assert (
        story.misled_says.count("is not trusted") <= 3
    )  # once, and again after the server was away: no line an attempt


def test_a_clock_that_is_wrong_is_named_once_and_costs_nobody_else(story: Story) -> None:
    """Client 1, whose clock is behind by what is allowed, takes part in the whole story."""
    assert story.hasty_says.count("refused: the clock of this device is ") == 1
    found = re.search(r"the clock of this device is (\d+) s ahead of the server's, and 5 s ahead", story.hasty_says)
    assert found and abs(int(found[1]) - 60) < 5
    right = story.hasty_says.split("set the one that is wrong, best by NTP")[1]
    # What is wrong with it next: its key, or, where its last attempts fell into the times without a server, that.
    assert "its key (stranger) is not registered there" in right or "cannot reach the server" in right
    assert "clock" not in story.clients_say[1]


def test_a_run_that_cannot_work_ends_with_the_reason(story: Story) -> None:
    assert story.codes["broken"] == 2
    assert (
        "the scenario cannot be run: task 'broken': data() raised RuntimeError: the disk with the data is not"
        in story.broken_says
    )
    assert "is submitted" not in story.broken_says  # found before anything was started


def test_only_operators_reach_more_than_the_nodes_part(story: Story) -> None:
    assert story.outside["control/list-nodes"] == 403
    assert story.outside["fleet/pull-messages"] == 401  # it has no key to show


def test_a_message_that_is_too_large_is_refused_before_it_takes_memory(story: Story) -> None:
    """The rest of the story goes on: the tests of rounds and replies hold that it cost nobody anything."""
    assert story.oversized.startswith("413 fedpress: a request is 1,048,")
    assert "and at most 1,048,576 are taken; see `message_mib` in the server's settings" in story.oversized
    said = "warning: 127.0.0.1 is refused at '/v1/fleet/push-object': a request is 1,048,"
    assert story.server_says.count(said) == 1


def test_a_second_server_is_refused(story: Story) -> None:
    assert "is running already" in story.second_server


def test_watchers_see_the_run(story: Story) -> None:
    assert "fedpress_round 1.0" in story.metrics and 'fedpress_nodes{status="online"} 2.0' in story.metrics
    assert re.search(r'fedpress_bytes_total\{direction="up"\} [1-9]', story.metrics)
    assert re.search(r'fedpress_phase_seconds_total\{phase="replies"\} [1-9]', story.metrics)
    assert re.search(r'fedpress_memory_bytes\{process="superlink"\} [1-9]', story.metrics)
    assert story.health["state"] == "running" and story.health["nodes"] == 2
    assert 'fedpress_client_state{state="connected"} 1.0' in story.client_metrics
    assert [(row["name"], row["status"]) for row in story.listed] == [
        ("damaged", "damaged"),
        ("node-0", "online"),
        ("node-1", "online"),
        ("revoked", "unregistered"),
    ]


def test_the_clients_daemon_is_light(story: Story) -> None:
    assert 0 < story.daemon_bytes < 80e6


@pytest.mark.long
def test_requests_that_are_smaller_than_the_models_replies_are_refused_before_anything_starts(tmp_path: Path) -> None:
    assert fedpress(tmp_path, "keys", "init", "keys", "--host", "localhost").returncode == 0
    (tmp_path / "server.yaml").write_text("scenario: digits\nlisten: 127.0.0.1:1\nmetrics: null\nmessage_mib: 0.1\n")
    ended = fedpress(tmp_path, "server", "server.yaml")
    assert ended.returncode == 2
    assert "message_mib: 0.1; a reply of this model's clients may take a request of 0.577 MiB" in ended.stderr
    assert not (tmp_path / "server-state" / "superlink.log").exists()
