"""The folder that a run leaves behind, and the figures in it.

    scenario.yaml        what was run, complete: running it again gives the same model
    results.json         the figures (`Results`), written again after every round
    ledger.csv           every byte: round, node, direction, kind, bytes (`fedpress.compression.ledger`)
    model.safetensors    the global model at the end
    mask.bin             the places of the weights of a model that is sparse from round 1 (`compression.support`)
    partition.npz        which client has which examples: `client-0`, ... are indices into the training split
    architectures.json   shapes of the models that tiers train, by tier and name
    tiers/               of each tier that trains its model, `phone.safetensors`, and its ledger, `phone.csv`
    bundles/             the students as published
    downloads/           the students as clients received them
    payloads/            every accepted payload, `round-0007/node-12.fp`, of a run that keeps them
    run.log              what was logged
    state/               while a run is not finished: checkpoints of the server, what clients keep
    report.html          the page that `fedpress report` makes
    tensorboard/         event files for TensorBoard, where they were asked for

A folder stays readable however the run ends: results.json is replaced as a whole, never written in place,
and its `status` says whether the run finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedpress.compression.errors import FedpressError
from fedpress.compression.files import remove_leftovers, write_atomically

MEASURED: Final[dict[str, Any]] = {
    "seconds": True,
    "phases": True,
    "worker_phases": True,
    "students": {"__all__": {"timings": True, "stages": {"__all__": {"latency_ms"}}}},
}
"""What of `Results` is read off a clock, and never the same twice: for `model_dump(exclude=MEASURED)`."""
RUNS = Path("runs")  # where a run goes that is not told where to go; git ignores it


class RunFolderError(FedpressError, ValueError):
    """A run folder cannot be made, or is missing, torn or not what was expected."""


class Record(BaseModel):
    """A part of results.json. Keys that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TierRound(Record):
    """What one round was for a tier that trains; accuracy and loss as of the round."""

    accuracy: float | None
    loss: float | None
    up_bytes: int
    down_bytes: int
    replies: int


class RoundResult(Record):
    """One round. Accuracy (a fraction) and loss are those of the held model; None: not evaluated.

    On test data, unless the scenario's `evaluation.split` says validation.
    """

    round: int
    accuracy: float | None
    loss: float | None
    up_bytes: int
    down_bytes: int
    replies: int  # accepted
    refused: int
    reasons: dict[str, int] = {}  # refused, by reason
    virtual_seconds: float = 0.0  # on the scenario's own clock, from the run's start
    joules: float = 0.0  # estimate: what the clients' devices spent on the round's bytes (`Totals`)
    staleness: float | None = None  # of the accepted replies, mean; None: a synchronous round, or none accepted
    max_staleness: int | None = None
    tiers: dict[str, TierRound] = {}  # those that train; bytes, replies and refusals above are of all together
    epoch: int = 0  # of the mask after the round; 0: none
    density: float = 1.0  # the part of the weights that the model has after the round


class TierResult(Record):
    """A tier that has trained a model of its own; accuracy as of the run, a fraction."""

    tier: str
    parameters: int
    accuracy: float | None
    up_bytes: int
    down_bytes: int


class CandidateResult(Record):
    """One architecture that a search looked at; `compression.models.search.Candidate` says what the fields mean."""

    start: str
    widths: dict[str, int]
    parameters: int
    cost: float
    score: float
    epochs: int = 0
    accuracy: float | None = None
    loss: float | None = None
    uniform: bool = False
    chosen: bool = False


class StageResult(Record):
    """A student after one step of its making; `compression.models.chain.Stage` says what the fields mean."""

    name: str
    parameters: int
    size_bytes: int
    latency_ms: float
    accuracy: float
    worst_class: int
    worst_lost: float


class PruningStep(Record):
    """One step of a pruning that was watched; `compression.models.pruning.Step` says what the fields mean."""

    kept: float
    parameters: int
    accuracy: float
    taken: bool


class LayerTiming(Record):
    """A layer of a sparse student; `compression.models.sparse_execution.Timing` says what the fields mean."""

    layer: str
    density: float
    dense_ms: float
    sparse_ms: float
    chosen: str


class StudentResult(Record):
    """One student of one published version. Accuracies are fractions on test data."""

    tier: str
    version: int
    parameters: int
    bundle_bytes: int
    accuracy: float  # of the bundle as downloaded and rebuilt by a client
    teacher_accuracy: float  # of the global model that it was made from
    student_accuracy: float  # before quantisation
    quantized_accuracy: float  # after it, before it was written to a bundle
    sha256: str  # of the bundle file
    stages: list[StageResult] = []  # what each step of its making did
    warning: str = ""  # which class it loses too much on
    candidates: list[CandidateResult] = []  # what was looked at for it, if it was searched for
    curve: list[PruningStep] = []  # the way of its pruning, where a ratio was asked for
    timings: list[LayerTiming] = []  # of the layers, where it is sparse


class LayerDensity(Record):
    """How much of one tensor was sent."""

    name: str
    size: int  # entries of the tensor
    sent: float  # mean entries sent per update

    @property
    def density(self) -> float:
        """The part of the tensor's entries that a mean update holds; 0 for an empty tensor."""
        return self.sent / self.size if self.size else 0.0


class Totals(Record):
    """Bytes of the whole run; `dense_*`: one really serialised dense message times the messages of this run.

    `joules` is what the clients' devices spent on these bytes, by estimate (`Network.joules`); 0: the scenario has no
    network, or its network no figures on energy.
    """

    up_bytes: int
    down_bytes: int
    dense_up_bytes: int
    dense_down_bytes: int
    bundle_bytes: int = 0
    joules: float = 0.0

    @property
    def both_bytes(self) -> int:
        """Bytes of training and evaluation in both directions, students apart."""
        return self.up_bytes + self.down_bytes - self.bundle_bytes

    @property
    def up_ratio(self) -> float | None:
        """How many times fewer bytes went up than dense messages would have; None: nothing was sent."""
        return self.dense_up_bytes / self.up_bytes if self.up_bytes else None

    @property
    def down_ratio(self) -> float | None:
        """How many times fewer bytes went down than dense messages would have; None: nothing was sent."""
        return self.dense_down_bytes / self.down_bytes if self.down_bytes else None


class ModelInfo(Record):
    """The global model at the end of the run."""

    parameters: int
    sha256: str


class Results(Record):
    """All figures of a run, as in results.json.

    `faults` counts what went wrong on purpose; `lost_states` the replies of clients that had lost their state.

    `phases` are the server's seconds by what they went into (`SparseFed.phases`), `worker_phases` those of the inline
    engine's workers (`InlineGrid.phases`).

    `accuracy` is the mean over the last 10 evaluated rounds: one round alone swings by several points.
    """

    scenario: dict[str, Any]
    seed: int
    status: Literal["running", "finished", "interrupted"]
    rounds: list[RoundResult]
    totals: Totals
    model: ModelInfo
    students: list[StudentResult] = []
    layers: list[LayerDensity] = []
    faults: dict[str, int] = {}
    lost_states: int = 0
    tiers: list[TierResult] = []
    accuracy: float | None
    seconds: float
    phases: dict[str, float] = {}
    worker_phases: dict[str, float] = {}

    @property
    def flushes(self) -> int:
        """How often a buffer of replies was taken in; 0: the rounds were synchronous."""
        return sum(result.staleness is not None for result in self.rounds)

    @property
    def staleness(self) -> tuple[float, int]:
        """Mean and largest staleness of the accepted replies of a buffered run, in steps."""
        taken = [r for r in self.rounds if r.staleness is not None]
        weighted = sum(r.replies * (r.staleness or 0.0) for r in taken)
        return weighted / max(1, sum(r.replies for r in taken)), max((r.max_staleness or 0 for r in taken), default=0)

    @property
    def new_masks(self) -> list[RoundResult]:
        """The rounds after which the model had another mask than before; round 1 where it began with one."""
        before = [0, *(result.epoch for result in self.rounds)]
        return [result for result, epoch in zip(self.rounds, before, strict=False) if result.epoch != epoch]

    @property
    def split(self) -> str:
        """What the rounds were evaluated on: "test" or "validation" data."""
        return str(self.scenario.get("evaluation", {}).get("split", "test"))

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.scenario.get("name", "run"))


class RunFolder:
    """The paths of a run, and the writing and reading of its figures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scenario = path / "scenario.yaml"
        self.results = path / "results.json"
        self.ledger = path / "ledger.csv"
        self.model = path / "model.safetensors"
        self.partition = path / "partition.npz"
        self.architectures = path / "architectures.json"
        self.tiers = path / "tiers"
        self.mask = path / "mask.bin"
        self.bundles = path / "bundles"
        self.downloads = path / "downloads"
        self.payloads = path / "payloads"
        self.log = path / "run.log"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.state = path / "state"
        self.checkpoints = self.state / "server"
        self.client_states = self.state / "clients"
        self.begun = self.state / "scenario.json"  # as it was when the run began

    @classmethod
    def create(cls, path: Path | str | None = None, *, name: str = "run") -> RunFolder:
        """Makes an empty run folder.

        Args:
            path: where; None: a new folder under `runs/`, called by `name` and the time.
            name: the scenario's name.

        Raises:
            RunFolderError: `path` is a file, or a folder that is not empty, or cannot be made.
        """
        if path is None:
            return cls(_new_folder(RUNS, f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
        folder = Path(path)
        cls(folder).check_empty()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
        return cls(folder)

    def check_empty(self) -> None:
        """Finds out whether a new run may begin here.

        Raises:
            RunFolderError: it is a file, or a folder that is not empty.
        """
        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder} is a file; a run needs a folder of its own")
        if folder.is_dir():
            remove_leftovers(folder)  # of a run that was killed before it had anything
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty, and a run never mixes with what is there; "
                "give another folder, or remove this one if it is an old run that you no longer need"
            )

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run folder at `path`, which must exist and hold a results.json.

        Raises:
            RunFolderError: there is no such folder, or it is not a run's.
        """
        folder = Path(path)
        if not folder.exists():
            raise RunFolderError(f"there is no run folder {folder}{_recent_runs()}")
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is a file; expected the folder of a run (the one that holds results.json)")
        run = cls(folder)
        if not run.results.is_file():
            raise RunFolderError(
                f"{folder} holds no results.json: it is not a run folder, or its run ended before the first figures"
            )
        return run

    def write_scenario(self, text: str) -> None:
        """Writes scenario.yaml."""
        write_atomically(self.scenario, text.encode())

    def save_payload(self, round: int, node: int, payload: bytes) -> None:
        """Writes an accepted payload under `payloads/`."""
        path = self.payloads / f"round-{round:04}" / f"node-{node}.fp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)

    @classmethod
    def unfinished(cls, path: Path | str) -> RunFolder:
        """The folder of a run that was killed or interrupted, at any moment, and can go on.

        Raises:
            RunFolderError: there is no such folder, it is not a run's, or its run is finished.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunFolderError(f"there is no run folder {folder}{_recent_runs()}")
        run = cls(folder)
        if not run.scenario.is_file():
            raise RunFolderError(f"{folder} holds no scenario.yaml: it is not a run folder, so no run can go on there")
        if run.results.is_file() and run.load_results().status == "finished":
            raise RunFolderError(
                f"the run in {folder} is finished, nothing is left to do; its report: fedpress report {folder}; to run"
                f" its scenario again: fedpress simulate {folder}"
            )
        if not run.begun.is_file() and (run.results.exists() or run.state.exists() and any(run.state.glob("*/"))):
            raise RunFolderError(
                f"{folder} has no {run.begun.relative_to(folder)}, so its run cannot go on: was its state removed?"
                f" To run its scenario again: fedpress simulate {folder}"
            )
        return run

    def remove_leftovers(self) -> None:
        """Removes what killed writes have left anywhere in the folder; nobody may be writing there."""
        for place in [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]:
            remove_leftovers(place)

    def clear_state(self) -> None:
        """Removes what only a run that goes on needs."""
        shutil.rmtree(self.state, ignore_errors=True)

    def save_results(self, results: Results) -> None:
        """Replaces results.json; a reader sees the old figures or the new ones, never a half."""
        write_atomically(self.results, (results.model_dump_json(indent=1) + "\n").encode())

    def load_results(self) -> Results:
        """Reads results.json.

        Raises:
            RunFolderError: it is missing, torn, or lacks keys.
        """
        try:
            data = self.results.read_bytes()
        except OSError as error:
            raise RunFolderError(f"cannot read {self.results}: {error.strerror or error}") from error
        try:
            return Results.model_validate_json(data)
        except ValidationError as error:
            raise RunFolderError(_explain(self.results, error)) from error


def load(path: Path | str) -> Results:
    """The figures of the run at `path`.

    Raises:
        RunFolderError: there is no such folder, it is not a run's, or its results.json is torn or lacks keys.
    """
    return RunFolder.open(path).load_results()


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there before; two runs begun in the same second get different ones."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
        else:
            return folder


def _recent_runs(most: int = 3) -> str:
    """The newest runs, to name in an error; an empty text when there are none."""
    found = sorted(RUNS.glob("*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return "; the newest are " + ", ".join(str(file.parent) for file in found[:most]) if found else ""


def _explain(path: Path, error: ValidationError) -> str:
    problems: Sequence[Mapping[str, Any]] = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return f"{path} is torn or not JSON: {problems[0]['ctx']['error']}; was it edited or copied in part?"
    found = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in problems[:5]
    )
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{path} is not a results.json of this version: {found}{more}"
