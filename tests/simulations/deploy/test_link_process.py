"""The SuperLink's process: its address and what it takes; test_service.py runs it, and sees it killed."""

import json
from pathlib import Path

import pytest

from fedpress.simulations.deploy import keys, run_app, settings
from fedpress.simulations.deploy.link_process import LEAST_MESSAGE, LinkProcess


def link(tmp_path: Path, **chosen: object) -> LinkProcess:
    service = settings.ServerSettings(scenario="digits", state=str(tmp_path), **chosen)  # type: ignore[arg-type]
    return LinkProcess(service, keys.Folder(tmp_path / "keys"), tmp_path / "flwr", lambda line: None, lambda: None)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0:9092", "127.0.0.1:9092"),
        ("192.0.2.1:9092", "192.0.2.1:9092"),
        ("[::]:9092", "[::1]:9092"),
    ],
)
def test_this_machine_reaches_what_listens_everywhere(tmp_path: Path, listen: str, address: str) -> None:
    assert link(tmp_path, listen=listen).address == address


def test_a_message_may_be_as_large_as_the_model_needs(tmp_path: Path) -> None:
    assert link(tmp_path).message_bytes() == LEAST_MESSAGE
    dense = 4 * LEAST_MESSAGE
    forecast = {"models": [{"request_bytes": 10}, {"request_bytes": dense}]}
    (tmp_path / run_app.FORECAST).write_text(json.dumps(forecast))
    assert link(tmp_path).message_bytes() == dense
    assert link(tmp_path, message_mib=dense / 2**20 + 1).message_bytes() == dense + 2**20
    with pytest.raises(settings.SettingsError, match="message_mib: 3; a reply of this model's clients may take"):
        link(tmp_path, message_mib=3).message_bytes()


def test_a_superlink_that_runs_elsewhere_is_not_started(tmp_path: Path) -> None:
    elsewhere = link(tmp_path, superlink="198.51.100.7:9092")
    assert elsewhere.keep(connected=False) and elsewhere.starts == 0 and not elsewhere.runs
    assert elsewhere.address == "198.51.100.7:9092"
    elsewhere.stop()
