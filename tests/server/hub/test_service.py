"""The hub as devices and operators meet it: real processes, real TLS, whatever a client may try."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.apps import command_line
from tests.apps.hub_process import HubProcess

grpc = pytest.importorskip("grpc")
pytest.importorskip("grpc_health")

from google.protobuf import descriptor_pb2  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # noqa: E402

from fedpress.compression.messages import hub_pb2, hub_pb2_grpc  # noqa: E402
from fedpress.server.hub import admission  # noqa: E402
from fedpress.server.publishing.store import ModelStore  # noqa: E402
from fedpress.simulations.deploy import keys  # noqa: E402

pytestmark = pytest.mark.slow
CODE = grpc.StatusCode
SMALL = os.urandom(200_001)
LARGE = os.urandom(48 << 20)


class Client:
    """A client that may do anything, over a connection of its own."""

    def __init__(self, address: str, ca: Path | None = None, token: str | None = None) -> None:
        # On a busy machine gRPC's estimate of its window may grow until all of a file fits that nobody reads.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        self.channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()), options)
            if ca
            else grpc.insecure_channel(address, options)
        )
        self.stub = hub_pb2_grpc.HubStub(self.channel)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def list(self, **wanted: Any) -> list[Any]:
        return list(self.stub.ListBundles(hub_pb2.ListRequest(**wanted), metadata=self.metadata, timeout=30).bundles)

    def open(self, tier: str, version: int = 0, offset: int = 0, timeout: float = 60) -> Any:
        request = hub_pb2.GetRequest(tier=tier, version=version, offset=offset)
        return self.stub.GetBundle(request, metadata=self.metadata, timeout=timeout)

    def get(self, tier: str, version: int = 0, offset: int = 0) -> tuple[Any, bytes]:
        first, *rest = self.open(tier, version, offset)
        assert first.data == b"" and not any(part.HasField("bundle") for part in rest)
        assert all(len(part.data) <= 1 << 16 for part in rest)
        return first.bundle, b"".join(part.data for part in rest)

    def refused(self, tier: str, version: int = 0, offset: int = 0) -> tuple[Any, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.open(tier, version, offset))
        return caught.value.code(), caught.value.details()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


class Place(NamedTuple):
    folder: Path
    store: ModelStore
    ca: Path
    tls: list[object]
    token: str
    hub: HubProcess

    def client(self, token: str | None = "", address: str = "") -> Client:
        return Client(address or self.hub.address, self.ca, self.token if token == "" else token)


def once_free(client: Client) -> Any:
    """The first part of a download, as soon as there is a place for it."""
    until = time.monotonic() + 20
    while True:
        try:
            return next(client.open("phone"))
        except grpc.RpcError:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    own = keys.init(folder / "keys", ["127.0.0.1"], days=1)
    store = ModelStore(folder / "store")
    for version in (1, 2, 10):
        store.put(SMALL[version:], tier="phone", version=version)
    store.put(b"watch", tier="watch", version=5)
    token = admission.add_token(folder / "tokens", "tester")
    tls = ["--certificate", own.server, "--key", own.server_key]
    with HubProcess(store.folder, *tls, "--tokens", folder / "tokens", "--requests", 10_000) as hub:
        yield Place(folder, store, own.ca, tls, token, hub)


# --- what it serves --------------------------------------------------------------------------------------------------


def test_what_is_published_is_listed(place: Place) -> None:
    with place.client() as client:
        found = [(one.tier, one.version, one.size) for one in client.list()]
        assert found == [*(("phone", v, len(SMALL) - v) for v in (1, 2, 10)), ("watch", 5, 5)]
        assert [(one.tier, one.version) for one in client.list(newest_only=True)] == [("phone", 10), ("watch", 5)]
        (watch,) = client.list(tier="watch")
        assert watch.sha256 == hashlib.sha256(b"watch").digest() and abs(watch.created - time.time()) < 600
        assert client.list(tier="fone") == []


def test_a_bundle_comes_whole_from_any_offset(place: Place) -> None:
    with place.client() as client:
        about, data = client.get("phone")
        assert (about.tier, about.version, about.size) == ("phone", 10, len(data))
        assert data == SMALL[10:] and about.sha256 == hashlib.sha256(data).digest()
        assert client.get("phone", 2)[1] == SMALL[2:]
        for offset in (1, 65_535, 65_536, len(data) - 1, len(data)):
            assert client.get("phone", 0, offset) == (about, data[offset:])


def test_what_is_not_there_is_refused_with_what_is(place: Place) -> None:
    with place.client() as client:
        assert client.refused("fone") == (CODE.NOT_FOUND, "there is no tier 'fone': the hub has phone, watch")
        code, said = client.refused("phone", 3)
        assert code == CODE.NOT_FOUND and "no version 3 of tier 'phone': the hub has 1 to 10" in said
        code, said = client.refused("phone", 0, len(SMALL))
        assert code == CODE.OUT_OF_RANGE and "beyond the end of version 10" in said
        assert client.refused("phone", 2**64 - 1)[0] == CODE.NOT_FOUND
        assert client.refused("phone", 0, 2**64 - 1)[0] == CODE.OUT_OF_RANGE


@pytest.mark.parametrize(
    "tier", ["../store/phone", "phone/..", "/etc", "phone\0", ".", "..", "", "x" * 65, "phoné", "a b"]
)
def test_names_that_are_no_tiers(place: Place, tier: str) -> None:
    (place.folder / "secret.fpb").write_bytes(b"secret")
    with place.client() as client:
        assert client.refused(tier)[0] == CODE.INVALID_ARGUMENT


def test_half_written_and_strange_files_are_not_served(place: Place) -> None:
    phone = place.store.folder / "phone"
    strange = [
        phone / ".abc.part", phone / "0000000099.fpb.part", phone / "99.fpb", phone / "٠٠٠٠٠٠٠٠٩٩.fpb",
        place.store.folder / "0000000099.fpb", place.store.folder / ".hidden" / "0000000099.fpb",
        place.store.folder / "a b" / "0000000099.fpb",
    ]  # fmt: skip
    (phone / "0000000098.fpb").mkdir()  # named as one is, and none
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    time.sleep(1.1)
    try:
        with place.client() as client:
            assert {(one.tier, one.version) for one in client.list()} == {
                ("phone", 1), ("phone", 2), ("phone", 10), ("watch", 5)
            }  # fmt: skip
            assert client.refused("phone", 99)[0] == CODE.NOT_FOUND
            assert client.refused(".hidden")[0] == CODE.INVALID_ARGUMENT
            assert client.get("phone")[0].version == 10
    finally:
        (phone / "0000000098.fpb").rmdir()
        for path in strange:
            path.unlink()


def test_a_new_version_is_served_at_once_and_digests_are_those_of_the_files(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    with HubProcess(store.folder, "--insecure") as hub, Client(hub.address) as client:
        assert client.list() == []
        assert client.refused("phone") == (CODE.NOT_FOUND, "there is no tier 'phone': the hub has none yet")
        for version in (1, 2, 3):
            store.put(bytes([version]) * 1000, tier="phone", version=version)
            time.sleep(1.1)
            about, data = client.get("phone")
            assert about.version == version and data == bytes([version]) * 1000
            assert about.sha256 == hashlib.sha256(data).digest()


# --- whom it serves --------------------------------------------------------------------------------------------------


def test_no_service_but_health_is_there_without_a_token(place: Place) -> None:
    for token, said in ((None, "wants a token"), ("", None), ("wrong", "mistyped, or revoked")):
        with place.client(token) as client:
            if said:
                code, found = client.refused("phone")
                assert code == CODE.UNAUTHENTICATED and said in found
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    client.list()
            health = health_pb2_grpc.HealthStub(client.channel)
            for service in ("", "fedpress.hub.v1.Hub"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):  # strangers must not keep requests open
                list(health.Watch(health_pb2.HealthCheckRequest(), timeout=30))
            stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="fedpress.hub.v1.Hub")
            answers = stub.ServerReflectionInfo(iter([question]), metadata=client.metadata, timeout=30)
            if said:
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    list(answers)
            else:
                (answer,) = answers
                file = descriptor_pb2.FileDescriptorProto.FromString(
                    answer.file_descriptor_response.file_descriptor_proto[0]
                )
                assert [method.name for method in file.service[0].method] == ["ListBundles", "GetBundle"]


def test_a_refusal_is_logged_once_for_a_peer_and_a_reason(place: Place) -> None:
    with place.client("wrong") as client:
        for _ in range(20):
            client.refused("phone")
    assert place.hub.text().count("the token is not one of this hub's") == 1


def test_a_request_that_is_too_large_is_refused(place: Place) -> None:
    with place.client() as client:
        assert client.refused("x" * 5000)[0] == CODE.RESOURCE_EXHAUSTED
        client.metadata.append(("padding", "x" * 100_000))
        assert client.refused("phone")[0] == CODE.RESOURCE_EXHAUSTED
    with place.client() as client:
        assert client.get("watch")[1] == b"watch"


def test_requests_are_limited_for_each_token_and_come_back(place: Place) -> None:
    tokens = place.folder / "limited"
    one, two = admission.add_token(tokens, "one"), admission.add_token(tokens, "two")
    with HubProcess(place.store.folder, *place.tls, "--tokens", tokens, "--requests", 30) as hub:
        with place.client(one, hub.address) as client:
            for _ in range(30):
                client.list()
            with pytest.raises(grpc.RpcError) as caught:
                while True:  # one more every two seconds
                    client.list()
            assert caught.value.code() == CODE.RESOURCE_EXHAUSTED
            assert caught.value.details() == "token one asks more than 30 times a minute"
            wait = int(dict(caught.value.trailing_metadata())["retry-after-ms"])
            assert 0 < wait <= 2001
            with place.client(two, hub.address) as other:
                assert len(other.list()) == 4
            time.sleep(wait / 1000 + 0.1)
            assert len(client.list()) == 4


def test_downloads_are_limited_for_each_client_and_in_all(place: Place) -> None:
    tokens = place.folder / "crowd"
    made = [admission.add_token(tokens, f"client-{number}") for number in range(3)]
    options = ["--downloads", 3, "--downloads-each", 2, "--rate", 20_000, "--tokens", tokens]
    with HubProcess(place.store.folder, *place.tls, *options) as hub:
        clients = [place.client(token, hub.address) for token in made]
        calls = []
        for client in (clients[0], clients[0], clients[1]):
            calls.append(client.open("phone"))
            next(calls[-1])
        code, said = clients[0].refused("phone")
        assert code == CODE.RESOURCE_EXHAUSTED and "token client-0 has 2 downloads under way" in said
        code, said = clients[2].refused("phone")
        assert code == CODE.RESOURCE_EXHAUSTED and "3 downloads are under way" in said
        assert len(clients[2].list()) == 4  # a question is no download
        calls[0].cancel()
        assert once_free(clients[2]).bundle.version == 10  # a place that is left is another's
        for client in clients:
            client.channel.close()


def test_the_rate_of_a_client_is_kept_over_all_its_downloads(place: Place) -> None:
    rate = 100_000
    with HubProcess(place.store.folder, "--insecure", "--rate", rate) as hub, Client(hub.address) as client:
        began = time.monotonic()
        calls = [client.open("phone"), client.open("phone")]
        total = sum(len(part.data) for call in calls for part in call)
        seconds = time.monotonic() - began
    assert total == 2 * (len(SMALL) - 10)
    assert seconds > (total - rate) / rate - 0.5  # the first second's worth is free


def figures(address: str) -> str:
    """The page of the hub's metrics."""
    return urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()


def test_a_reader_that_takes_nothing_gives_its_place_up(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    store.put(LARGE, tier="phone", version=1)
    metrics = f"127.0.0.1:{free_port()}"
    options = ["--insecure", "--stall", 1, "--downloads-each", 1, "--metrics", metrics]
    with HubProcess(store.folder, *options) as hub, Client(hub.address) as stalled, Client(hub.address) as other:
        call = stalled.open("phone", timeout=120)
        next(call)
        code, _ = other.refused("phone")
        assert code == CODE.RESOURCE_EXHAUSTED
        until = time.monotonic() + 30
        while "nothing was read for 1 s" not in hub.text():
            assert time.monotonic() < until, hub.text() + figures(metrics)
            time.sleep(0.1)
        assert other.get("phone")[1] == LARGE
        with pytest.raises(grpc.RpcError):  # told so, or cut off; never a whole file
            list(call)
        counted = figures(metrics)
        assert 'fedpress_hub_downloads_total{outcome="stalled",tier="phone"} 1.0' in counted
        assert 'fedpress_hub_downloads_total{outcome="complete",tier="phone"} 1.0' in counted
        assert "fedpress_hub_streams 0.0" in counted
        assert "Traceback" not in hub.text()
        assert hub.stop() == 0


def test_a_client_that_is_killed_gives_its_place_up(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    store.put(LARGE, tier="phone", version=1)
    with HubProcess(store.folder, "--insecure", "--downloads-each", 1, "--rate", 1_000_000) as hub:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedpress.simulations", "pull", "--insecure", "--hub", hub.address,
             "--tier", "phone", "--out", str(tmp_path / "out")]
        )  # fmt: skip
        try:
            until = time.monotonic() + 30
            while not any(path.stat().st_size > 1_000_000 for path in tmp_path.glob("out/.*.part")):
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        with Client(hub.address) as client:
            assert once_free(client).bundle.version == 1
        assert "Traceback" not in hub.text()


# --- how it starts and stops -----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_downloads_under_way_end_before_the_hub_does(place: Place) -> None:
    with HubProcess(place.store.folder, "--insecure", "--rate", 50_000, "--grace", 30) as hub:
        with Client(hub.address) as client:
            call = client.open("phone")
            next(call)
            hub.process.send_signal(signal.SIGTERM)
            data = b"".join(part.data for part in call)
            assert data == SMALL[10:]
            assert hub.process.wait(timeout=20) == 0
    assert "stopping: 1 downloads under way" in hub.text() and "Traceback" not in hub.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_or_the_end_of_the_grace_ends_them(place: Place, number: int) -> None:
    for grace, again in ((60, True), (1, False)):
        with HubProcess(place.store.folder, "--insecure", "--rate", 1000, "--grace", grace) as hub:
            with Client(hub.address) as client:
                call = client.open("phone")
                next(call)
                hub.process.send_signal(number)
                if again:
                    until = time.monotonic() + 20
                    while "stopping" not in hub.text():
                        assert time.monotonic() < until
                        time.sleep(0.05)
                    hub.process.send_signal(number)
                assert hub.process.wait(timeout=20) == 0
                with pytest.raises(grpc.RpcError):
                    list(call)
        assert "Traceback" not in hub.text()


def test_a_renewed_certificate_is_taken_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    ModelStore(tmp_path / "store").put(b"one", tier="phone", version=1)
    first, second = (keys.init(tmp_path / name, ["127.0.0.1"], days=1) for name in ("first", "second"))
    certificate, key = first.server, first.server_key
    with HubProcess(tmp_path / "store", "--certificate", certificate, "--key", key, "--public") as hub:
        with Client(hub.address, first.ca) as client:
            assert client.get("phone")[1] == b"one"
        whole = key.read_bytes()
        key.write_bytes(whole[: len(whole) // 2])
        with Client(hub.address, first.ca) as client:
            assert client.get("phone")[1] == b"one"
        assert "goes on with the certificate that it has" in hub.text()
        key.write_bytes(second.server_key.read_bytes())
        certificate.write_bytes(second.server.read_bytes())
        with Client(hub.address, second.ca) as client:
            assert client.get("phone")[1] == b"one"
        with Client(hub.address, first.ca) as client:
            assert client.refused("phone")[0] == CODE.UNAVAILABLE


def test_what_cannot_be_started_says_why(place: Place, tmp_path: Path) -> None:
    certificate, key = place.tls[1], place.tls[3]
    other = keys.init(tmp_path / "other", ["127.0.0.1"], days=1).server_key
    (tmp_path / "bad").write_text("one two\n")
    store = str(place.store.folder)
    for arguments, said in (
        ([str(tmp_path / "none"), "--insecure"], "there is no folder"),
        ([store], "TLS needs --certificate and --key"),
        ([store, "--insecure", "--key", key], "leave out one of them"),
        ([store, *place.tls], "who may download"),
        ([store, "--insecure", "--listen", "0.0.0.0:0"], "who may download"),
        ([store, *place.tls, "--public", "--tokens", place.folder / "tokens"], "--public lets everybody in"),
        ([store, "--certificate", certificate, "--key", other, "--public"], "MISMATCH"),
        ([store, "--certificate", tmp_path / "no", "--key", key, "--public"], "No such file"),
        ([store, *place.tls, "--client-ca", tmp_path / "bad"], "--client-ca"),
        ([store, "--insecure", "--tokens", tmp_path / "bad"], "line 1: expected a name and the SHA-256"),
        ([store, "--insecure", "--tokens", tmp_path / "no"], "cannot read the tokens"),
        ([store, "--insecure", "--listen", "9443"], "expected HOST:PORT"),
    ):
        told = command_line.invoke("hub", *arguments)
        assert told.exit_code == 2 and said in told.stderr and "Traceback" not in told.stderr, (arguments, told.stderr)
    for arguments, said in (
        ([store, "--insecure", "--listen", place.hub.address], "is the port taken"),
        ([store, "--insecure", "--listen", "127.0.0.1:0", "--metrics", place.hub.address], "--metrics"),
    ):
        done = command_line.fedpress("hub", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (arguments, done)


def test_a_hub_without_tls_for_all_the_world_warns(place: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpress.simulations", "hub", str(place.store.folder), "--insecure", "--public",
         "--listen", "0.0.0.0:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout and "no TLS, open to all who reach it" in process.stdout.readline()
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "WARNING NO TLS on 0.0.0.0" in said
