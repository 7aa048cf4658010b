"""Chaos: a server, four daemons and a hub over TLS, each daemon behind a link of its own, and faults drawn by a seed.

A fault takes half a minute or several, so this is no part of the suite: make chaos, which strikes with each kind once
and says what happened and when. Others: FEDPRESS_FAULTS=30 FEDPRESS_CHAOS_SEED=7 make chaos
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.apps.bad_link import BadLink, Weather
from tests.apps.service_process import PATIENCE, Service, fedpress, process, until
from tests.apps.small_disk import SmallDisk
from tests.apps.wrong_clock import Clock

from fedpress.client.state import stores
from fedpress.compression.models.bundles import reader
from fedpress.simulations.deploy import children, flower_processes
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import runner
from fedpress.simulations.scenario import scenario

FAULTS = int(os.environ.get("FEDPRESS_FAULTS", "0"))
SEED = int(os.environ.get("FEDPRESS_CHAOS_SEED", "1"))
CLIENTS, SMALL = 4, 3
"""How many there are, and which of them has a disk of 12 MB."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(not FAULTS, reason="takes minutes: make chaos"),
]
SCENARIO = [
    f"clients={CLIENTS}", f"sampling.clients_per_round={CLIENTS}", f"rounds={FAULTS + 2}", "density=0.05", "network={}",
    "sampling.deadline=90", "students={tiers: [{name: phone, parameters: 5000}], distill: {epochs: 1}, every: 1}",
]  # fmt: skip


class World:
    """All that runs, and what may befall it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.random = folder, random.Random(SEED)
        self.run = RunFolder(folder / "run")
        self.port, self.hub_port = flower_processes.free_port(), flower_processes.free_port()
        self.links = [stack.enter_context(BadLink(self.port, seed=number)) for number in range(CLIENTS)]
        self.hub_link = stack.enter_context(BadLink(self.hub_port, seed=CLIENTS))
        self.clocks = [Clock(folder / f"clock-{number}") for number in range(CLIENTS)]
        self.disk = SmallDisk.mounted(folder / f"client-{SMALL}")
        if self.disk:
            stack.callback(self.disk.close)
        self.server_home = folder / "server-state" / "flwr"
        self.log: list[tuple[str, float, int, str]] = []  # fault, seconds, round, outcome
        self.services: dict[str, Service] = {}
        self._set_up()
        stack.callback(self.close)

    def _set_up(self) -> None:
        assert fedpress(self.folder, "keys", "init", "keys", "--host", "127.0.0.1").returncode == 0
        for number in range(CLIENTS):
            assert fedpress(self.folder, "keys", "node", "keys", f"node-{number}").returncode == 0
            (self.folder / f"client-{number}.yaml").write_text(
                f"superlink: 127.0.0.1:{self.links[number].port}\nca: keys/ca.crt\nkey: keys/nodes/node-{number}\n"
                f"state: client-{number}\npartition: {number}\nthreads: 1\n" + ("warm: true\n" if number == 0 else "")
            )
        (self.folder / "server.yaml").write_text(
            f"scenario: digits\noverrides: {json.dumps(SCENARIO)}\nlisten: 127.0.0.1:{self.port}\nmetrics: null\n"
            f"hub: {json.dumps(['fedpress', *self.hub_command()])}\n"
        )

    def start(self, name: str) -> None:
        if name == "server":
            self.services[name] = Service(self.folder, "server", "server.yaml", name=name)
            return
        number = int(name.removeprefix("client-"))
        self.services[name] = Service(
            self.folder, "client", f"{name}.yaml", name=name, changes=self.clocks[number].environment,
            within=self.disk.within if self.disk and number == SMALL else (),
        )  # fmt: skip

    def rounds(self) -> int:
        with suppress(Exception):
            return len(self.run.load_results().rounds)
        return 0

    def client_home(self, number: int) -> Path:
        return self.folder / f"client-{number}" / "flwr"

    def client_rounds(self, number: int) -> Path:
        folder = self.disk.folder if self.disk and number == SMALL else self.folder / f"client-{number}"
        return folder / "rounds"

    def wait_for_training(self) -> int:
        """Return a client that trains, one by the seed if several do."""
        order = self.random.sample(range(CLIENTS), CLIENTS)
        found: list[int] = []

        def training() -> bool:
            found[:] = [n for n in order if process(self.client_home(n), "flwr-clientapp") is not None]
            return bool(found) or self.services["server"].process.poll() is not None

        until("a client trains", training)
        return found[0] if found else order[0]

    def kill(self, home: Path, name: str) -> None:
        if (pid := process(home, name)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- faults -------------------------------------------------------------------------------------------------------

    def daemon_killed_while_it_trains(self) -> str:
        number = self.wait_for_training()
        self.services[f"client-{number}"].process.kill()
        self.services[f"client-{number}"].process.wait()
        self.start(f"client-{number}")
        return f"client {number}"

    def app_killed_while_it_trains(self) -> str:
        number = self.wait_for_training()
        self.kill(self.client_home(number), "flwr-clientapp")
        return f"client {number}"

    def supernode_killed(self) -> str:
        number = self.wait_for_training()
        self.kill(self.client_home(number), "deploy.supernode")
        return f"client {number}"

    def superlink_killed(self) -> str:
        self.wait_for_training()
        self.kill(self.server_home, "deploy.superlink")
        return ""

    def server_app_killed(self) -> str:
        self.wait_for_training()
        self.kill(self.server_home, "flwr-serverapp")
        return ""

    def server_stopped_and_started(self) -> str:
        self.wait_for_training()
        code = self.services["server"].stop()
        self.start("server")
        return f"exit code {code}"

    def clock_wrong(self) -> str:
        number = self.wait_for_training()
        service, said = self.services[f"client-{number}"], "the clock of this device is"
        before = service.text.count(said)
        self.clocks[number].set(400.0)
        until("the client says so", lambda: service.text.count(said) > before, service)
        self.clocks[number].set(0.0)
        return f"client {number}"

    def disk_full(self) -> str:
        if self.disk is None:
            return "no mounting without root here"
        until("round begins", lambda: process(self.client_home(SMALL), "flwr-clientapp") is not None)
        round = self.rounds()
        self.disk.fill()
        until("a round is over", lambda: self.rounds() > round or self.services["server"].process.poll() is not None)
        self.disk.empty()
        return f"client {SMALL}: {self.run.load_results().rounds[round].reasons}"

    def links_cut(self) -> str:
        self.wait_for_training()
        for link in self.links:
            link.cut_all()
        return f"{sum(link.counts['connections'] for link in self.links)} connections so far"

    def connections_dropped(self) -> str:
        return self._weather(Weather(refuse=0.2), "refused")

    def connections_reset(self) -> str:
        return self._weather(Weather(cut_after=60_000, reset=True), "cut")

    def links_slow(self) -> str:
        return self._weather(Weather(bytes_per_second=125_000, delay=0.05), "connections")

    def hub_killed_during_a_download(self) -> str:
        if not self.run.bundles.is_dir():
            return "nothing published yet"
        self.hub_link.weather = Weather(bytes_per_second=4_000)
        pull = subprocess.Popen(self.pull_command(), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(1.0)
        self.kill(self.server_home, "hub")
        self.hub_link.weather = Weather()
        _, error = pull.communicate(timeout=PATIENCE)
        assert pull.returncode == 0, error.decode()
        return "the pull went on"

    def hub_command(self) -> list[str]:
        keys = self.folder / "keys"
        return ["hub", str(self.run.bundles), "--listen", f"127.0.0.1:{self.hub_port}", "--public",
                "--certificate", str(keys / "server.crt"), "--key", str(keys / "server.key")]  # fmt: skip

    def pull_command(self) -> list[str]:
        return [*Service.COMMAND, "pull", "--hub", f"127.0.0.1:{self.hub_link.port}", "--tier", "phone", "--out",
                "pulled", "--ca", "keys/ca.crt"]  # fmt: skip

    def _weather(self, weather: Weather, counted: str) -> str:
        """Bad weather for a round; returns how often it struck."""
        before, round = sum(link.counts[counted] for link in self.links), self.rounds()
        for link in self.links:
            link.weather = weather
            link.cut_all()  # Flower keeps connections open: without new ones none could be refused
        until("a round is over", lambda: self.rounds() > round or self.services["server"].process.poll() is not None)
        for link in self.links:
            link.weather = Weather()
        return f"{sum(link.counts[counted] for link in self.links) - before} {counted}"

    def strike(self, fault: Callable[[], str]) -> None:
        """Strike once, and wait until a round has been completed since."""
        began, before = time.monotonic(), self.rounds()
        outcome = fault()
        server = self.services["server"]
        until("a round is over", lambda: self.rounds() > before or server.process.poll() is not None)
        name = fault.__name__.replace("_", " ")
        self.log.append((name, time.monotonic() - began, before + 1, outcome))
        print(f"round {before + 1:3}  {name:34} {time.monotonic() - began:6.1f} s  {outcome}", flush=True)

    def close(self) -> None:
        for service in self.services.values():
            if service.process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    service.stop()
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()
        for home in (self.server_home, *(self.client_home(number) for number in range(CLIENTS))):
            children.end_all(home)


KINDS = (
    World.daemon_killed_while_it_trains, World.superlink_killed, World.connections_reset,
    World.hub_killed_during_a_download, World.server_app_killed, World.links_slow, World.supernode_killed,
    World.connections_dropped, World.app_killed_while_it_trains, World.links_cut, World.server_stopped_and_started,
    World.clock_wrong, World.disk_full,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world after its run, which went through all the faults."""
    with ExitStack() as stack:
        made = World(tmp_path_factory.mktemp("chaos"), stack)
        made.start("server")
        for number in range(CLIENTS):
            made.start(f"client-{number}")
        until("round 1 is over", lambda: made.rounds() >= 1, *made.services.values())
        drawn = [KINDS[n % len(KINDS)] for n in range(FAULTS)]
        made.random.shuffle(drawn)
        for kind in drawn:
            if made.services["server"].process.poll() is not None:
                break
            made.strike(getattr(made, kind.__name__))
        until("the run is finished", lambda: made.services["server"].process.poll() is not None)
        yield made


@pytest.fixture(scope="module")
def results(world: World) -> Results:
    return world.run.load_results()


def test_the_run_completes(world: World, results: Results) -> None:
    assert world.services["server"].process.returncode == 0, world.services["server"].text
    assert results.status == "finished" and len(results.rounds) == FAULTS + 2
    assert len(world.log) >= min(FAULTS, 3)


def test_no_update_counts_twice_and_no_state_is_lost(world: World, results: Results) -> None:
    assert all(one.replies + one.refused <= CLIENTS for one in results.rounds)
    assert sum(one.replies for one in results.rounds) >= CLIENTS * len(results.rounds) - 2 * FAULTS
    assert results.lost_states == 0


def test_what_clients_keep_back_is_whole(world: World) -> None:
    kept = [file for number in range(CLIENTS) for file in world.client_rounds(number).rglob("*")]
    files = [file for file in kept if file.suffix == ".safetensors"]
    assert len(files) == CLIENTS and not [file for file in kept if "damaged" in file.name]
    for number in range(CLIENTS):
        store = stores.FolderStore(world.client_rounds(number), "digits-1", number)
        assert store.load() is not None


def test_the_end_is_about_that_of_an_undisturbed_run(results: Results, tmp_path: Path) -> None:
    undisturbed = runner.simulate(scenario.load("digits", SCENARIO), tmp_path / "run")
    last, expected = results.rounds[-1].loss, undisturbed.rounds[-1].loss
    assert last is not None and expected is not None and last < undisturbed.rounds[0].loss
    assert last == pytest.approx(expected, rel=0.5)


def test_what_the_hub_gave_verifies(world: World, results: Results) -> None:
    service = Service(world.folder, *world.hub_command(), name="hub")
    try:
        until("the hub listens", lambda: "hub listens" in service.text, service)
        done = subprocess.run(world.pull_command(), cwd=world.folder, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    finally:
        service.stop()
    (pulled,) = (world.folder / "pulled").glob("*.fpb")
    opened = reader.open_bundle(pulled.read_bytes())
    assert opened.sha256 == max(results.students, key=lambda student: student.version).sha256


def test_nothing_is_left_behind(world: World) -> None:
    for number in range(CLIENTS):
        assert world.services[f"client-{number}"].stop() == 0
    homes = [world.server_home, *(world.client_home(number) for number in range(CLIENTS))]
    assert [children.belonging_to(home) for home in homes] == [{}] * len(homes)
