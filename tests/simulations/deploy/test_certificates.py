"""Certificates in memory: what a server's and a client's are for, and days out of range."""

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpress.simulations.deploy import _certificates as certificates

AUTHORITY, SIGNER = certificates.authority("fedpress test")
LOCAL = set(certificates.names([]))


NAME = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9](\.[a-z]{1,5})?", fullmatch=True)


@settings(max_examples=20)
@given(st.lists(st.ip_addresses().map(str) | NAME, max_size=4))
def test_a_certificate_is_for_its_hosts_and_this_machine(hosts: list[str]) -> None:
    names = certificates.names(hosts)
    assert len(names) == len(set(names)) and set(names) >= LOCAL
    for host in hosts:
        try:
            assert x509.IPAddress(ipaddress.ip_address(host)) in names
        except ValueError:
            assert x509.DNSName(host) in names


@pytest.mark.parametrize("host", ["", "a b", "a:80", "http://a", "-a", "*"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(certificates.KeysError, match="expected a name or an address, without a port"):
        certificates.names([host])


@pytest.mark.parametrize("server", [True, False])
def test_a_certificate_is_of_its_authority_and_for_one_purpose(server: bool) -> None:
    names = certificates.names(["a.example.org"]) if server else None
    issued, key = certificates.issued(AUTHORITY, SIGNER, "somebody", 7, names)
    issued.verify_directly_issued_by(AUTHORITY)
    assert issued.public_key() == key.public_key()
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = issued.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert 6.9 < left / datetime.timedelta(days=1) <= 7
    if server:
        assert certificates.alternatives(issued) == names


@pytest.mark.parametrize("days", [0, -1, certificates.CA_DAYS + 1])
def test_days_out_of_range_are_refused(days: int) -> None:
    with pytest.raises(certificates.KeysError, match=f"got {days} days of validity, expected 1 to"):
        certificates.issued(AUTHORITY, SIGNER, "somebody", days, None)


def test_files_that_are_missing_damaged_or_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for read in (certificates.read_certificate, certificates.read_private_key):
        with pytest.raises(certificates.KeysError, match="cannot read .*none: .*`fedpress keys init` makes it"):
            read(tmp_path / "none")
        with pytest.raises(certificates.KeysError, match="text is not a .* in PEM format"):
            read(tmp_path / "text")
    (tmp_path / "key").write_bytes(certificates.pem(SIGNER))
    assert certificates.read_private_key(tmp_path / "key").private_numbers() == SIGNER.private_numbers()
