"""The app that a service runs, before anything starts; test_service.py runs it."""

from pathlib import Path

import pytest

from fedpress.simulations.deploy import run_app, settings
from fedpress.simulations.deploy.children import ServiceError
from fedpress.simulations.results.run_folder import RunFolder


def written(tmp_path: Path, said: list[str], **chosen: object) -> run_app.RunApp:
    state = tmp_path / "state"
    state.mkdir()
    service = settings.ServerSettings(state=str(state), out=str(tmp_path / "run"), **chosen)  # type: ignore[arg-type]
    interrupted = bool(said)  # whoever has said something before does not wait
    return run_app.write(service, RunFolder(Path(service.out)), state / "flwr", said.append, lambda: interrupted)


def test_an_app_of_the_users_own_is_run_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match="holds no pyproject.toml"):
        written(tmp_path, [], app=str(tmp_path))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "state").rmdir()
    assert written(tmp_path, [], app=str(tmp_path)) == (tmp_path, 0)


@pytest.mark.long
def test_a_scenario_that_cannot_be_run_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ServiceError, match="the scenario cannot be run: .*matches no parameter"):
        written(tmp_path, said, scenario="digits", overrides=["trainable=['haed.*']"])
    assert said == ["checking the scenario"] and not (tmp_path / "state" / "app").exists()


def test_an_app_is_written_for_a_scenario(tmp_path: Path) -> None:
    app = written(tmp_path, ["stop"], scenario="digits", overrides=["clients=17"])  # the check is cut short
    assert app.nodes == 17 and "fedpress.simulations.runs.plan:load" in (app.folder / "pyproject.toml").read_text()
