"""Keys and certificates: who can read them, what is never overwritten, and that real TLS takes them."""

import os
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.apps.service_process import Service
from tests.apps.wrong_clock import Clock

from fedpress.simulations.deploy import daemon, keys


@pytest.fixture
def folder(tmp_path: Path) -> keys.Folder:
    return keys.init(tmp_path / "keys", ["fed.example.org", "192.0.2.7"], 30)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_for_their_owner_alone(folder: keys.Folder) -> None:
    private, public = keys.node(folder.path, "phone-1")
    certificate, key = keys.client(folder.path, "phone-1", 30)
    assert {mode(path) for path in (folder.path, folder.nodes, folder.clients)} == {0o700}
    assert {mode(path) for path in (folder.ca_key, folder.server_key, private, key)} == {0o600}
    assert {mode(path) for path in (folder.ca, folder.server, public, certificate)} == {0o644}


def test_nothing_is_overwritten(folder: keys.Folder) -> None:
    keys.node(folder.path, "phone-1")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(keys.KeysError, match="never overwritten"):
        keys.init(folder.path, ["localhost"], 30)
    with pytest.raises(keys.KeysError, match="never overwritten"):
        keys.node(folder.path, "phone-1")
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_revoked_name_is_not_given_again(folder: keys.Folder) -> None:
    keys.node(folder.path, "phone-1")
    keys.revoke(folder.path, "phone-1")
    assert folder.public_keys() == {}
    (folder.nodes / "phone-1").unlink()
    with pytest.raises(keys.KeysError, match="phone-1.revoked is there already"):
        keys.node(folder.path, "phone-1")
    with pytest.raises(keys.KeysError, match="cannot revoke phone-2: .*nodes there are none"):
        keys.revoke(folder.path, "phone-2")


def test_node_keys_are_what_flower_wants(folder: keys.Folder) -> None:
    private, public = keys.node(folder.path, "phone-1")
    loaded = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name == "secp384r1"
    assert keys.node_key(private) == []
    own = loaded.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert keys.public_bytes(public) == own


def test_a_key_in_pem_is_refused_with_the_reason(folder: keys.Folder) -> None:
    with pytest.raises(keys.KeysError, match="PEM format, which Flower refuses"):
        keys.node_key(folder.server_key)


def test_loose_permissions_are_a_warning(folder: keys.Folder) -> None:
    assert keys.check(folder) == [f"{folder.server} expires in 29 days; {renewal(folder)}"]
    folder.server_key.chmod(0o640)
    folder.path.chmod(0o755)
    warnings = keys.check(folder)
    assert f"{folder.server_key} is open to others (mode 640); close it: chmod 600 {folder.server_key}" in warnings
    assert f"{folder.path} is open to others (mode 755); close it: chmod 700 {folder.path}" in warnings


def renewal(folder: keys.Folder) -> str:
    return f"`fedpress keys renew {folder.path}` makes a new one, and a restart of the server takes it"


def test_mixed_up_files_are_found_out(folder: keys.Folder, tmp_path: Path) -> None:
    other = keys.init(tmp_path / "other", ["localhost"], 30)
    folder.server.write_bytes(other.server.read_bytes())
    with pytest.raises(keys.KeysError, match="is not signed by"):
        keys.check(folder)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x.revoked"])
def test_names_that_lead_elsewhere_are_refused(folder: keys.Folder, name: str) -> None:
    with pytest.raises(keys.KeysError, match="got the name"):
        keys.node(folder.path, name)


def test_a_host_with_a_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(keys.KeysError, match="without a port"):
        keys.init(tmp_path / "keys", ["fed.example.org:9092"], 30)
    assert not (tmp_path / "keys").exists()


class Listener:
    """A TLS server with a certificate, for as long as the context lasts."""

    def __init__(self, folder: keys.Folder) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder.server, folder.server_key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._tls = context.wrap_socket(self._socket, server_side=True)
        self.port = self._tls.getsockname()[1]

    def __enter__(self) -> "Listener":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                self._tls.accept()[0].close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._tls.shutdown(socket.SHUT_RDWR)
        self._tls.close()


def test_tls_takes_them_for_their_names_only(folder: keys.Folder, tmp_path: Path) -> None:
    """The reasons are those that the client's daemon gives."""
    other = keys.init(tmp_path / "other", ["localhost"], 30)
    with Listener(folder) as server:
        for host in ("localhost", "127.0.0.1"):
            assert daemon.handshake(f"{host}:{server.port}", folder.ca) == ""
        wrong = daemon.handshake(f"localhost:{server.port}", other.ca)
        assert f"it is of another authority than {other.ca}" in wrong
        stranger = daemon.handshake(f"127.0.0.2:{server.port}", folder.ca)
        assert "cannot reach" in stranger or "it is not for 127.0.0.2" in stranger
        missing = daemon.handshake(f"localhost:{server.port}", tmp_path / "none.crt")
        assert "cannot use the authority's certificate" in missing
    assert "cannot reach the server" in daemon.handshake(f"localhost:{server.port}", folder.ca)


@pytest.mark.parametrize(("days", "said"), [(2, "it is not valid yet by"), (-40, "it has run out by")])
def test_a_wrong_clock_is_named(tmp_path: Path, days: int, said: str) -> None:
    """What is made by a clock that is ahead looks, here, as what is right does to a clock that is behind."""
    clock = Clock(tmp_path / "clock", 86400.0 * days)
    command = [*Service.COMMAND, "keys", "init", "keys", "--host", "localhost", "--days", "30"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **clock.environment}, check=True, capture_output=True)
    folder = keys.Folder(tmp_path / "keys")
    with Listener(folder) as server:
        heard = daemon.handshake(f"localhost:{server.port}", folder.ca)
    assert f"{said} the clock of this device, which says {datetime.now(UTC):%Y-%m-%d}" in heard


def test_renewal_keeps_the_names_and_the_authority(folder: keys.Folder) -> None:
    before = folder.server.read_bytes(), folder.server_key.read_bytes()
    keys.renew(folder.path, 365)
    assert folder.server.read_bytes() != before[0] and folder.server_key.read_bytes() != before[1]
    assert keys.check(folder) == []
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(folder.server), "-noout", "-ext", "subjectAltName"],
        capture_output=True,
        text=True,
    ).stdout
    assert "DNS:fed.example.org, IP Address:192.0.2.7, DNS:localhost, IP Address:127.0.0.1" in shown
    with Listener(folder) as server:
        assert daemon.handshake(f"localhost:{server.port}", folder.ca) == ""
