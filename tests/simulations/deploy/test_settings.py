"""Settings files: what is wrong is named with its key, and paths do not depend on where the command runs."""

from datetime import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.deploy import settings
from fedpress.simulations.scenario import template

CLIENT = "superlink: localhost:9092\nkey: key\n"


def load_client(folder: Path, text: str) -> settings.ClientSettings:
    (folder / "client.yaml").write_text(text)
    return settings.load(folder / "client.yaml", settings.ClientSettings)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CLIENT + "partion: 1\n", "partion: unknown key (value given: 1); did you mean 'partition'?"),
        ("key: key\n", "superlink: missing (The server's address.)"),
        ("superlink: localhost\nkey: key\n", "superlink: expected HOST:PORT, such as fed.example.org:9092"),
        ("superlink: localhost:99999\nkey: key\n", "superlink: expected HOST:PORT"),
        (CLIENT + "hours: 22-6\n", "hours: expected two times of the day, such as 22:00-06:00"),
        (CLIENT + "hours: 25:00-06:00\n", "hours: expected two times of the day"),
        (CLIENT + 'hours: "08:00-08:00"\n', "hours: begins when it ends"),
        (CLIENT + "threads: 0\n", "threads: got 0, expected 1 <= threads"),
        (CLIENT + "memory_gib: lots\n", "memory_gib: got 'lots', expected a number"),
        (CLIENT + "tier: it's\n", "tier: must hold no '"),
        (CLIENT + "key: again\n", "key: given twice"),
    ],
)
def test_a_wrong_client_file_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(settings.SettingsError) as found:
        load_client(tmp_path, text)
    assert problem in str(found.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keys: keys\n", "scenario: give either a scenario or an app"),
        ("scenario: digits\napp: mine\n", "scenario: give either a scenario or an app, not both"),
        ("scenario: digits\nrun_config: {a: 1}\n", "run_config: is for an app"),
        ("app: mine\noverrides: [rounds=1]\n", "overrides: are for a scenario"),
        ("scenario: digits\noperators: [here]\n", "operators.0: 'here' does not appear to be an IPv4 or IPv6 network"),
        ("scenario: digits\nlisten: 9092\n", "listen: got 9092, expected text"),
    ],
)
def test_a_wrong_server_file_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "server.yaml").write_text(text)
    with pytest.raises(settings.SettingsError) as found:
        settings.load(tmp_path / "server.yaml", settings.ServerSettings)
    assert problem in str(found.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match="`fedpress server --example` prints one"):
        settings.load(tmp_path / "server.yaml", settings.ServerSettings)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = load_client(tmp_path, CLIENT + "state: here\ndata: /srv/data\n")
    assert found.state == str(tmp_path / "here") and found.key == str(tmp_path / "key")
    assert found.data == "/srv/data"


@pytest.mark.parametrize(
    ("example", "kind"),
    [(settings.SERVER_EXAMPLE, settings.ServerSettings), (settings.CLIENT_EXAMPLE, settings.ClientSettings)],
)
def test_the_examples_are_read_back(
    example: settings.ServerSettings | settings.ClientSettings,
    kind: type[settings.ServerSettings] | type[settings.ClientSettings],
    tmp_path: Path,
) -> None:
    (tmp_path / "file.yaml").write_text(template.commented(example))
    found = settings.load(tmp_path / "file.yaml", kind)
    assert type(found) is type(example)
    assert found.state == str(tmp_path / example.state)


TIMES = st.times(min_value=time(0, 0), max_value=time(23, 59)).map(lambda found: found.replace(second=0, microsecond=0))


@given(TIMES, TIMES, st.times())
def test_hours_and_their_complement_are_the_day(begin: time, end: time, now: time) -> None:
    if begin == end:
        return
    there, back = f"{begin:%H:%M}-{end:%H:%M}", f"{end:%H:%M}-{begin:%H:%M}"
    assert settings.open_at(there, now) != settings.open_at(back, now)
    assert settings.open_at(there, begin) and not settings.open_at(there, end)


def test_a_partition_is_decimal(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    for text, expected in (("010", 10), ("008", 8), ("7", 7)):
        path.write_text(f"superlink: localhost:9092\nkey: k\npartition: {text}\n")
        assert settings.load(path, settings.ClientSettings).partition == expected
    path.write_text("superlink: localhost:9092\nkey: k\npartition: 1:30\n")
    with pytest.raises(settings.SettingsError, match="partition: got '1:30', expected a whole number"):
        settings.load(path, settings.ClientSettings)
