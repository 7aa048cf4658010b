"""A certificate that does not verify is explained with the likely mistake: real handshakes, in memory."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedpress.client.download import certificates

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority that issues certificates of a server."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.crt"
        own = self._builder(self.name, self.key.public_key(), NOW - DAY, NOW + DAY)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.path.write_bytes(own.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject, key, begin, end):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)

    def issue(self, host: str, begin: datetime.datetime = NOW - DAY, end: datetime.datetime = NOW + DAY) -> Path:
        """Return a file with a key and a certificate for a host."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        made = self._builder(subject, key.public_key(), begin, end).add_extension(names, critical=False)
        path = self.folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return path


def refusal(server: Path, ca: Path, host: str) -> ssl.SSLCertVerificationError:
    """Return the error of a client's handshake with a server."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = serving.wrap_bio(up, down, server_side=True)
    ours = ssl.create_default_context(cafile=ca).wrap_bio(down, up, server_hostname=host)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        for _ in range(5):
            for side in (ours, theirs):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    return caught.value


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "mine")


def test_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    error = refusal(authority.issue("hub.org"), other.path, "hub.org")
    assert certificates.reason(error, "hub.org", other.path) == f"it is of another authority than {other.path}"
    assert "an authority that this system does not know" in certificates.reason(error, "hub.org", None)


def test_a_certificate_for_another_host_names_the_command_that_adds_one(authority: Authority) -> None:
    error = refusal(authority.issue("hub.org"), authority.path, "hub.example")
    assert "it is not for hub.example; `fedpress keys renew --host`" in certificates.reason(error, "hub.example", None)


@pytest.mark.parametrize(
    ("days", "words"), [((-3, -2), "it has run out by the clock"), ((2, 3), "it is not valid yet by the clock")]
)
def test_a_certificate_outside_its_time_names_the_clock(
    authority: Authority, days: tuple[int, int], words: str
) -> None:
    begin, end = (NOW + number * DAY for number in days)
    error = refusal(authority.issue("hub.org", begin, end), authority.path, "hub.org")
    said = certificates.reason(error, "hub.org", authority.path)
    assert said.startswith(words) and f"which says {datetime.datetime.now(datetime.UTC):%Y-}" in said


def test_any_other_fault_is_told_in_the_words_of_openssl() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 23, "certificate revoked"
    assert certificates.reason(error, "hub.org", None) == "certificate revoked"
