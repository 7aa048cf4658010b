"""The first guide of docs/how-to/deploy.md is run, word for word but for the ports."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedpress.simulations.deploy import children, flower_processes
from fedpress.simulations.results.run_folder import RunFolder

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "deploy.md"


@pytest.mark.slow
@pytest.mark.deployment
def test_ten_minutes_on_one_machine(tmp_path: Path) -> None:
    guide = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    script = script.replace(":9092", f":{flower_processes.free_port()}")
    command = tmp_path / "bin" / "fedpress"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedpress.simulations "$@"\n')
    command.chmod(0o755)
    listen = re.search(r"superlink: localhost(:\d+)", script)
    assert listen
    script = script.replace("scenario: digits\n", f"scenario: digits\nlisten: 0.0.0.0{listen[1]}\nmetrics: null\n")
    bash = shutil.which("bash")
    assert bash
    try:
        ended = subprocess.run(
            [bash, "-euc", script],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert ended.returncode in (0, 143), ended.stdout + ended.stderr + logs
        assert "the run is finished" in ended.stdout
        run = RunFolder.open(tmp_path / "run")
        results = run.load_results()
        assert results.status == "finished" and [r.replies for r in results.rounds] == [2, 2, 2]
        assert results.students and run.report.exists()
        for number in (0, 1):
            assert (tmp_path / f"client-{number}.log").read_text().endswith("stopped\n")
        assert list(tmp_path.glob("client-*/downloads/*"))  # a student is where the client keeps it
    finally:
        for state in ("server-state", "client-0", "client-1"):
            home = tmp_path / state / "flwr"
            assert children.end_all(home, wait=children.GRACE) == 0 or sys.exc_info()[0]
