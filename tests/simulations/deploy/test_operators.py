"""The operators' token: made once, kept from others, given by the environment; and Flower's settings with it."""

from pathlib import Path

import pytest

from fedpress.simulations.deploy import keys, operators


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> keys.Folder:
    monkeypatch.delenv(operators.TOKEN, raising=False)
    return keys.init(tmp_path / "keys", ["localhost"], 30)


def test_it_is_made_once_and_for_its_owner_alone(folder: keys.Folder) -> None:
    assert operators.token(folder) == ""
    made = operators.make_token(folder)
    assert made.startswith(operators.PREFIX) and len(made) > 40
    assert operators.make_token(folder) == operators.token(folder) == made
    assert folder.operator.stat().st_mode & 0o777 == 0o600


def test_the_environments_goes_first(folder: keys.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(operators.TOKEN, "x" * 32)
    assert operators.make_token(folder) == "x" * 32 and not folder.operator.exists()


@pytest.mark.parametrize("text", [b"short", b"x" * 300, b"two words" * 8, b"\xff" * 40, b"", b"x" * 2000])
def test_what_is_no_token_is_named(text: bytes, folder: keys.Folder) -> None:
    folder.operator.write_bytes(text)
    with pytest.raises(keys.KeysError, match=r"operators' token .*operator\.token"):
        operators.token(folder)


def test_others_that_can_read_it_are_warned_of(folder: keys.Folder) -> None:
    operators.make_token(folder)
    folder.operator.chmod(0o644)
    assert any("operator.token is open to others" in warning for warning in keys.check(folder))


def test_flowers_settings_are_for_the_owner_alone(folder: keys.Folder, tmp_path: Path) -> None:
    home = tmp_path / "state" / "operator"
    for _ in range(2):
        operators.flower_home(home, "127.0.0.1:9092", folder.ca, "x" * 32)
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in home.iterdir()} == {"config.toml", "credentials.yaml"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.iterdir())
