"""The port for metrics and health."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fedpress.simulations.deploy import children, flower_processes, monitor


def test_the_metrics_port_answers(tmp_path: Path) -> None:
    port, well = flower_processes.free_port(), True
    figures = [
        monitor.figure("round", "Round.", 3.0),
        monitor.ServiceFigure("bytes", "Bytes.", {("up",): 5.0, ("down",): 7.0}, ("direction",), total=True),
        monitor.figure("accuracy", "Not known yet.", None),
    ]

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with monitor.served(f"127.0.0.1:{port}", lambda: figures, lambda: (well, {"state": "connected"})):
        status, text = get("/metrics")
        assert status == 200 and 'fedpress_bytes_total{direction="down"} 7.0' in text and "fedpress_round 3.0" in text
        assert "\nfedpress_accuracy " not in text
        assert (get("/health")[0], json.loads(get("/health")[1])) == (200, {"state": "connected"})
        well = False
        assert get("/health")[0] == 503 and get("/")[0] == 404
        with pytest.raises(children.ServiceError, match="choose another port"):
            with monitor.served(f"127.0.0.1:{port}", lambda: figures, lambda: (well, {})):
                pass


def test_without_an_address_nothing_is_served() -> None:
    def never() -> list[monitor.ServiceFigure]:
        pytest.fail("asked for figures")

    with monitor.served(None, never, lambda: (True, {})):
        pass
