"""Tokens, buckets and limits by themselves."""

import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.server.hub import admission
from fedpress.server.hub.admission import Bucket, Clients, Refusals, TokenError, Tokens


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), max_size=50), st.floats(0.1, 10), st.floats(1, 20))
def test_a_bucket_never_gives_more_than_its_rate_and_what_it_holds(
    asked: list[tuple[float, float]], rate: float, most: float
) -> None:
    now, given_out, bucket = 0.0, 0.0, Bucket(rate, most, 0.0)
    for pause, amount in asked:
        now += pause
        wait = bucket.take(amount, now)
        given_out += 0 if wait else amount
        assert given_out <= most + rate * now + 1e-6
        assert wait >= 0 and (wait > 0 or amount <= most)


@given(st.lists(st.floats(0, 1000), max_size=50), st.floats(0.1, 100))
def test_who_waits_for_what_is_owed_is_as_fast_as_the_rate(amounts: list[float], rate: float) -> None:
    now, bucket = 0.0, Bucket(rate, rate, 0.0)
    for amount in amounts:
        now += bucket.owe(amount, now)
    assert now == pytest.approx(max(0.0, sum(amounts) / rate - 1), rel=1e-6, abs=1e-6)


def test_a_token_is_known_by_its_hash_alone_until_its_line_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    one, two = admission.add_token(path, "one"), admission.add_token(path, "two")
    assert one != two and one not in path.read_text() and hashlib.sha256(one.encode()).hexdigest() in path.read_text()
    tokens = Tokens(path)
    assert (tokens.name_of(one), tokens.name_of(two), tokens.name_of(""), tokens.name_of(one[:-1])) == (
        "one", "two", None, None,
    )  # fmt: skip
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("one ")))
    assert (tokens.name_of(one), tokens.name_of(two)) == (None, "two")
    three = admission.add_token(path, "three")
    assert tokens.name_of(three) == "three"


def test_a_file_that_goes_wrong_later_lets_nobody_in_who_is_not_in_a_right_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    one, two = admission.add_token(path, "one"), admission.add_token(path, "two")
    tokens = Tokens(path)
    path.write_text(path.read_text().replace("one ", "one"))
    assert (tokens.name_of(one), tokens.name_of(two)) == (None, "two")
    assert "line 2: expected a name and the SHA-256" in caplog.text
    path.unlink()
    assert tokens.name_of(two) is None and "no token is valid" in caplog.text


def test_names_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    admission.add_token(path, "one")
    for name, said in (("one", "already"), ("a b", "at most 64"), ("", "at most 64"), ("-x", "at most 64")):
        with pytest.raises(TokenError, match=said):
            admission.add_token(path, name)
    with pytest.raises(TokenError, match="cannot write"):
        admission.add_token(tmp_path / "none" / "tokens", "one")
    path.write_text("fph_thetokenitself\n")
    with pytest.raises(TokenError, match="is it the token itself"):
        Tokens(path)
    path.write_text(f"# comment\n\none {'A' * 64}")  # no newline at the end
    admission.add_token(path, "two")
    assert len(Tokens(path)) == 2


def test_many_clients_are_forgotten_but_not_those_with_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_CLIENTS", 3)
    clients = Clients(most=2, each=1, requests=60, rate=None)
    busy = clients.get("busy")
    with clients.download(busy):
        assert clients.why_not(busy) == "busy has 1 downloads under way, and 1 are allowed"
        first = clients.get("0")
        for number in range(100):
            clients.get(str(number))
        assert clients.get("busy") is busy
        assert clients.get("98") is not busy and clients.get("0") is not first  # forgotten, and new again
        with clients.download(clients.get("99")):
            assert "the most that this hub allows" in (clients.why_not(clients.get("0")) or "")
    assert clients.why_not(busy) is None and clients.streams == 0


def test_refusals_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refusals = Refusals()
        for _ in range(3):
            for peer in ("a", "b"):
                for reason in ("x", "y"):
                    refusals.log(peer, reason, f"{peer}{reason}")
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"refused {peer}: {peer}{reason} (logged once)" for peer in "ab" for reason in "xy"
    ]


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ("ipv4:127.0.0.1:1", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50", "::/64"),
        ("ipv6:[::ffff:10.0.0.1]:50", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50", "fe80::/64"),
        ("unix:/tmp/x", "unix:/tmp/x"),
    ],
)
def test_addresses(peer: str, found: str) -> None:
    assert admission.address(peer) == found
