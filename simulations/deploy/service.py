"""`fedpress server`: runs a SuperLink, registers the fleet's nodes, and brings one run to its end.

The state is read from three places: the SuperLink (nodes that are connected, status of the run), the run folder
(rounds and figures, which the ServerApp's process keeps up to date), and the processes themselves. A new attempt
continues from the run's checkpoints, so that the answer to every failure is the same: start the run again.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fedpress.client.backoff import Backoff
from fedpress.compression.errors import FedpressError
from fedpress.simulations.deploy import (
    children,
    daemon,
    flower_processes,
    keys,
    monitor,
    operators,
    run_app,
    settings,
)
from fedpress.simulations.deploy.children import (
    FIRST_WAIT,
    LONGEST_WAIT,
    SAME_FAILURES,
    SOON_SECONDS,
    Failures,
    ServiceError,
)
from fedpress.simulations.deploy.control import (
    Control,
    ControlUnreachable,
    DeployedRun,
    Refused,
    register_all,
)
from fedpress.simulations.deploy.hub_process import HubProcess
from fedpress.simulations.deploy.link_process import LinkProcess
from fedpress.simulations.deploy.run_figures import run_figures
from fedpress.simulations.results.records import Results
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError

POLL_SECONDS = 2.0
GONE_SECONDS = 6.0
"""Seconds without a ServerApp's process after which a run is restarted; a SuperLink takes a minute to notice."""
LEAVING_SECONDS = 15.0
"""Time limit for the ServerApp's process to end once its run is finished."""

WAITING = ("nodes", "waiting")
"""Subjects of news about what the run waits for: nodes to connect, replies to come."""


class Stopped(NamedTuple):
    """Outcome of `Server.run`.

    Attributes:
        signal: Signal that stopped it; 0: it ended by itself.
        results: Figures of the run, if there are any.
    """

    signal: int
    results: Results | None


class Service:
    """The service.

    Args:
        chosen: Its settings.
        say: Called with each line for the user.
    """

    def __init__(self, chosen: settings.ServerSettings, say: Callable[[str], None]) -> None:
        self._chosen = chosen
        self._say = say
        self._state = Path(chosen.state)
        self._home = self._state / "flwr"
        self._keys = keys.Folder(Path(chosen.keys))
        self._folder = RunFolder(Path(chosen.out))
        self._signal = 0
        self._wake = threading.Event()
        self._control: Control | None = None
        self._run: int | None = None
        self._app: Path | None = None
        self._needed = 0  # nodes that the run waits for; 0: not known
        self._nodes: dict[str, int] = {}  # number of nodes by status
        self._results: Results | None = None
        self._rounds_before = 0  # rounds done at the last failure
        self._app_completed = False
        self._server_app_seen = 0.0
        self._failures = Failures(SAME_FAILURES, SOON_SECONDS)
        self._run_began = 0.0
        self._run_wait, self._next_run, self._run_starts = Backoff(FIRST_WAIT, LONGEST_WAIT), 0.0, 0
        self._link = LinkProcess(chosen, self._keys, self._home, say, self._lost_link)
        self._hub = HubProcess(chosen, self._folder, self._home, say)
        self._status, self._finished_at = "starting", 0.0
        self._last_news: dict[str, str] = {}  # by subject

    def _interrupted(self) -> bool:
        """Wait a moment; return whether the service is to stop."""
        if not self._signal:
            self._wake.wait(0.2)
        return bool(self._signal)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Make `run` return soon; safe in a signal handler."""
        self._signal = signum
        self._wake.set()

    def run(self) -> Stopped:
        """Serve until the run is finished, or until `stop`.

        Raises:
            FedpressError: The service cannot start, or the run fails repeatedly for the same reason.
        """
        for warning in self._check():
            self._say(f"warning: {warning}")
        for folder in (self._state, self._home):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as stack:
            stack.enter_context(children.locked(self._state, "a server"))
            stack.enter_context(monitor.served(self._chosen.metrics, self.figures, self.health))
            if children.end_all(self._home, wait=children.GRACE):
                self._say("stopped what an earlier server had left running")
            try:
                if not self._finished():
                    self._app, self._needed = run_app.write(
                        self._chosen, self._folder, self._home, self._say, self._interrupted
                    )
                while not self._signal and (self._chosen.stay or not (self._finished() and self._run is None)):
                    self._step()
                    self._wake.wait(POLL_SECONDS if self._control else 0.2)
            finally:
                self._end()
        self._look_at_results()
        return Stopped(self._signal, self._results)

    def _check(self) -> list[str]:
        """Check commands and keys before anything starts; return warnings."""
        chosen = self._chosen
        flower_processes.command("flower-superlink")
        if chosen.superlink is not None:
            self._link.token = operators.token(self._keys)
            return []
        if not self._keys.ca.exists():
            place = self._keys.path
            raise keys.KeysError(f"there are no keys in {place}; make them: fedpress keys init {place}")
        self._link.token = operators.make_token(self._keys)
        return keys.check(self._keys)

    def _finished(self) -> bool:
        """Return whether the run is complete; of a user's own app only the SuperLink knows."""
        if self._chosen.app is not None:
            return self._app_completed
        self._look_at_results()
        return self._results is not None and self._results.status == "finished"

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._hub.keep()
        if not self._link.keep(connected=self._control is not None):
            return
        try:
            if self._control is None:
                self._connect()
            self._register()
            self._count_nodes()
            if self._run is not None or not (self._finished() or self._status == "failed"):
                self._keep_run()
        except ControlUnreachable as error:
            if self._chosen.superlink is not None or self._link.runs:
                self._news("control", f"{error}; it goes on trying")
        except Refused as error:
            if self._failures.hopeless(str(error), 0.0):
                raise
            self._news("control", f"{error}; it tries again")
        self._look_at_results()

    def _lost_link(self) -> None:
        self._run = None
        self._close_control()

    def _connect(self) -> None:
        self._control = Control(self._link.address, self._keys.ca, self._link.token)
        runs = self._control.runs()
        self._link.listens()
        self._last_news.pop("control", None)
        if self._chosen.superlink is None:
            self._say(f"listening at {self._chosen.listen}")
        else:
            self._say(f"using the SuperLink at {self._chosen.superlink}")
        if self._chosen.superlink is None:
            for run in runs.values():  # left over from an earlier server; their ServerApps are gone
                if run.status != "finished":
                    self._stop_run(run.id)

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _register(self) -> None:
        assert self._control is not None
        added, problems = register_all(self._control, self._keys)
        if added:
            self._say(f"registered {', '.join(added)}")
        for problem in problems:
            self._news(problem, f"warning: {problem}")

    def _count_nodes(self) -> None:
        assert self._control is not None
        counts: dict[str, int] = {}
        for node in self._control.nodes():
            counts[node.status] = counts.get(node.status, 0) + 1
        self._nodes = counts
        online = counts.get("online", 0)
        if self._needed and online < self._needed and not self._finished():
            self._news("nodes", f"waiting for nodes: {online} of {self._needed}")
        elif self._last_news.pop("nodes", None) is not None:
            self._say(f"all {self._needed} nodes are here" if online == self._needed else f"{online} nodes are here")

    def _keep_run(self) -> None:
        """Keep a run going: start it, and record how the last one ended."""
        assert self._control is not None and self._app is not None
        now = time.monotonic()
        if self._run is None:
            if now >= self._next_run:
                self._start_run()
            return
        run = self._control.runs().get(self._run)
        if run is None:
            self._failed("the SuperLink does not know the run any more")
        elif run.status == "finished":
            self._app_completed = self._chosen.app is not None and run.sub_status == "completed"
            if self._finished():
                self._run, self._status = None, "finished"
            elif self._chosen.app is None and self._results is not None and self._results.status == "failed":
                self._gave_up(self._results)
            else:
                self._failed(self._why(run))
        elif self._finished() and now - self._finished_at > LEAVING_SECONDS:
            self._stop_run(self._run)  # all rounds are done, but its process does not end
            self._run = None
        elif run.status == "running" and self._chosen.superlink is None and sys.platform == "linux":
            if any("flwr-serverapp" in command for command in children.belonging_to(self._home).values()):
                self._server_app_seen = now
            elif now - self._server_app_seen > GONE_SECONDS:
                self._stop_run(self._run)
                self._failed("the ServerApp's process is gone")

    def _start_run(self) -> None:
        assert self._control is not None and self._app is not None
        children.end_all(self._home, name="flwr-serverapp", wait=0.0)  # two must not write into one run folder
        rounds = len(self._results.rounds) if self._results else 0
        config = self._chosen.run_config if self._chosen.app is not None else {}
        if self._results is not None and self._results.status == "failed":  # which this attempt may mend
            self._say(f"the run has failed before, and is tried again: {self._results.reason}")
            self._results = self._results.model_copy(update={"status": "running", "reason": ""})
            self._folder.save_results(self._results)
        self._run = self._control.start(self._app, config)
        self._run_starts += 1
        self._run_began = time.monotonic()
        self._server_app_seen = time.monotonic() + 30.0  # it needs some seconds to start
        self._status = "running"
        self._say(f"run {self._run} is submitted" + (f"; it goes on after round {rounds}" if rounds else ""))

    def _why(self, run: DeployedRun) -> str:
        """Return why a run has failed: the last error in the log of its ServerApp."""
        assert self._control is not None
        if run.sub_status == "stopped":
            return "the run was stopped by an operator"
        with suppress(FedpressError):
            lines = [line.strip() for line in self._control.log(run.id).splitlines() if line.strip()]
            (self._state / "serverapp.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
            errors = [line for line in lines if "Error" in line and "Exit Code" not in line and "http" not in line]
            if errors:
                return errors[-1][-500:]
        return run.details or "it ended without an error in its log"

    def _failed(self, reason: str) -> None:
        now = time.monotonic()
        self._run = None
        rounds = len(self._results.rounds) if self._results else 0
        got_on, self._rounds_before = rounds > self._rounds_before, rounds
        if got_on:
            self._run_wait.reset()
        if self._failures.hopeless(reason, now - self._run_began, got_on=got_on):
            raise ServiceError(
                f"the run has failed {SAME_FAILURES} times, each within a minute: {reason}\nThe log of its ServerApp is"
                f" {self._state / 'serverapp.log'}; what there is of the run is in {self._folder.path}"
            )
        wait = self._run_wait.wait()
        self._next_run = now + wait
        self._status = "restarting"
        self._say(f"the run has ended: {reason}; it goes on in {wait:.0f} s")

    def _gave_up(self, results: Results) -> None:
        """End the service, or with `stay` only the run, which has failed by its own judgment.

        Raises:
            ServiceError: The run has failed, and the service does not stay.
        """
        self._run, self._status = None, "failed"
        text = (
            f"the run has failed after round {len(results.rounds)}: {results.reason}\nWhat there is of it is in"
            f" {self._folder.path}; the service, started again, tries again from there"
        )
        if not self._chosen.stay:
            raise ServiceError(text)
        self._say(f"{text}; until then it serves what there is")

    def _stop_run(self, run: int) -> None:
        assert self._control is not None
        with suppress(FedpressError):
            self._control.stop(run)

    def _end(self) -> None:
        """Stop everything, the run first: it must not continue unsupervised."""
        if self._control is not None and self._run is not None and not self._finished():
            self._stop_run(self._run)
        self._close_control()
        children.end_all(self._home, name="flwr-serverapp", wait=0.0)
        self._hub.stop()
        self._link.stop()
        children.end_all(self._home)
        if self._results is not None and self._results.status == "running":  # no process works on it any more
            with suppress(OSError):
                self._folder.save_results(self._results.model_copy(update={"status": "interrupted"}))

    # ---- status ----------------------------------------------------------------------------------------------------

    def _news(self, about: str, text: str) -> None:
        """Report a text unless it is the last one that was reported about the subject."""
        if self._last_news.get(about) != text:
            self._last_news[about] = text
            self._say(text)

    def _look_at_results(self) -> None:
        """Read the figures of the run, and report new rounds."""
        try:
            results = self._folder.load_results()
        except RunFolderError:
            return
        before = len(self._results.rounds) if self._results else None
        self._results = results
        for result in results.rounds[before:] if before is not None or self._run is not None else ():
            accuracy = f"accuracy {100 * result.accuracy:.1f} %, " if result.accuracy is not None else ""
            refused = f", {result.refused} refused ({', '.join(result.reasons)})" if result.refused else ""
            self._say(
                f"round {result.round} of {self.rounds}: {accuracy}{result.replies} replies{refused},"
                f" {result.up_bytes:,} bytes up, {result.down_bytes:,} down"
            )
        if results.waiting and results.status == "running":
            self._news("waiting", results.waiting)
        else:
            self._last_news.pop("waiting", None)
        if results.status == "finished" and self._status != "finished":
            self._status, self._finished_at = "finished", time.monotonic()
            if self._chosen.stay:
                self._say("the run is finished; the server goes on until it is stopped")

    @property
    def rounds(self) -> int:
        """Number of rounds that the run will have; 0: not known."""
        return int(self._results.scenario.get("rounds", 0)) if self._results else 0

    @property
    def _state_of_run(self) -> str:
        """State of the run: waiting is no failure, and is told from running."""
        waits = any(about in WAITING for about in self._last_news)
        return "waiting" if waits and self._status == "running" else self._status

    def figures(self) -> Iterator[monitor.ServiceFigure]:
        """Yield the metrics for Prometheus."""
        states = ("starting", "running", "waiting", "restarting", "finished", "failed")
        yield monitor.ServiceFigure(
            "run_state", "1 for the state that it is in.", {(s,): s == self._state_of_run for s in states}, ("state",)
        )
        counts = {"superlink": self._link.starts, "run": self._run_starts, "hub": self._hub.starts}
        starts: dict[tuple[str, ...], float] = {(name,): count for name, count in counts.items()}
        yield monitor.ServiceFigure("starts", "How often it was started, by part.", starts, ("part",), total=True)
        nodes: dict[tuple[str, ...], float] = {(status,): count for status, count in self._nodes.items()}
        yield monitor.ServiceFigure("nodes", "Nodes, by what the SuperLink says of them.", nodes, ("status",))
        yield monitor.figure("nodes_needed", "Nodes that the run waits for.", self._needed)
        yield daemon.memory(self._home)
        if self._results is not None:
            yield from run_figures(self._results, self.rounds)

    def health(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether all is well, and state, rounds, nodes and run folder."""
        facts = {
            "state": self._state_of_run,
            "waiting": "; ".join(text for about, text in self._last_news.items() if about in WAITING),
            "round": len(self._results.rounds) if self._results else 0,
            "rounds": self.rounds,
            "nodes": self._nodes.get("online", 0),
            "nodes_needed": self._needed,
            "out": str(self._folder.path),
        }
        return self._control is not None and self._status in ("running", "finished"), facts
