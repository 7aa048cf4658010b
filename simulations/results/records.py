"""Figures of a run: the classes of results.json."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from fedpress.compression.models.step import CandidateResult, LayerTiming, PruningStep, StageResult

Status = Literal["running", "finished", "interrupted", "failed"]
"""How a run ended: `interrupted` by its user, `failed` by an error or because nothing usable came of it (`reason`)."""

MEASURED: Final[dict[str, Any]] = {
    "seconds": True,
    "phases": True,
    "worker_phases": True,
    "students": {"__all__": {"timings": True, "stages": {"__all__": {"latency_ms"}}}},
}
"""Fields of `Results` that are measured times, hence never the same twice: for `model_dump(exclude=MEASURED)`."""


class Record(BaseModel):
    """Part of results.json. Keys that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TierRound(Record):
    """One round of a tier that trains."""

    accuracy: float | None  # a fraction; None: not evaluated, as the next
    loss: float | None
    up_bytes: int
    down_bytes: int
    replies: int  # accepted


class RoundResult(Record):
    """One round. Accuracy (a fraction) and loss are of the model that clients hold; None: not evaluated.

    They are on the split that the scenario's `evaluation.split` names.
    """

    round: int
    accuracy: float | None
    loss: float | None
    up_bytes: int
    down_bytes: int
    replies: int  # accepted
    refused: int
    reasons: dict[str, int] = {}  # refused, by reason
    virtual_seconds: float = 0.0  # from the run's start
    joules: float = 0.0  # estimate of what the clients' devices spent on the round's bytes (`Totals`)
    staleness: float | None = None  # of the accepted replies, mean; None: a synchronous round, or none accepted
    max_staleness: int | None = None
    tiers: dict[str, TierRound] = {}  # tiers that train; bytes, replies and refusals above are of all together
    mask_version: int = 0  # after the round; 0: no mask
    density: float = 1.0  # share of its weights that the model has after the round


class TierResult(Record):
    """Tier that trains its model. Accuracy is a fraction, the mean over the last rounds as in `Results`."""

    tier: str
    parameters: int
    accuracy: float | None
    up_bytes: int
    down_bytes: int


class StudentResult(Record):
    """Student of one published version. Accuracies are fractions on test data."""

    tier: str
    version: int
    parameters: int
    bundle_bytes: int
    accuracy: float  # of the bundle, which the server has opened again, as its clients do
    claimed_accuracies: list[float] = []  # that clients report of it: each the claim of one client
    teacher_accuracy: float  # of the global model that it was made from
    student_accuracy: float  # before quantization
    quantized_accuracy: float  # after it, before it was written to a bundle
    sha256: str  # of the bundle file
    onnx_accuracy: float | None = None  # of its ONNX graph in ONNX Runtime; None: it has none
    stages: list[StageResult] = []  # results of each step of its making
    warning: str = ""  # the class that it loses too much on; empty: none
    candidates: list[CandidateResult] = []  # of its search, if it was searched for
    curve: list[PruningStep] = []  # steps of its pruning, for a budget `removed_fraction`
    timings: list[LayerTiming] = []  # of the layers, where it is sparse


class LayerDensity(Record):
    """Density of updates in one tensor."""

    name: str
    size: int  # entries of the tensor
    sent: float  # mean entries sent per update

    @property
    def density(self) -> float:
        """Share of the tensor's entries in a mean update; 0 for an empty tensor."""
        return self.sent / self.size if self.size else 0.0


class Totals(Record):
    """Bytes of the whole run; `dense_*`: size of one serialized dense message times the messages of this run.

    `joules` estimates what the clients' devices spent on these bytes (`Network.joules`); 0: there is no network, or it
    has no figures on energy. `array_bytes` are those of the arrays alone, in both directions, in messages to train and
    their replies, as the FlowerTune LLM Leaderboard bills them (`CommunicationTracker` in Flower's template).
    """

    up_bytes: int
    down_bytes: int
    dense_up_bytes: int
    dense_down_bytes: int
    bundle_bytes: int = 0
    joules: float = 0.0
    array_bytes: int = 0
    dense_array_bytes: int = 0

    @property
    def both_bytes(self) -> int:
        """Bytes of training and evaluation in both directions, without students."""
        return self.up_bytes + self.down_bytes - self.bundle_bytes

    @property
    def up_ratio(self) -> float | None:
        """Compression ratio of uploads: dense bytes over bytes sent; None: nothing was sent."""
        return self.dense_up_bytes / self.up_bytes if self.up_bytes else None

    @property
    def down_ratio(self) -> float | None:
        """Compression ratio of downloads: dense bytes over bytes sent; None: nothing was sent."""
        return self.dense_down_bytes / self.down_bytes if self.down_bytes else None


class ModelInfo(Record):
    """Global model at the end of the run."""

    parameters: int
    sha256: str


class Results(Record):
    """All figures of a run, as in results.json.

    `faults` counts injected faults by kind; `lost_states` the replies of clients that had lost their state. `phases`
    are the server's seconds by phase (`SparseFed.timer`), `worker_phases` those of the inline engine's workers
    (`InlineGrid.seconds`).

    `accuracy` is the mean over the last 10 evaluated rounds: one round alone swings by several points.
    """

    scenario: dict[str, Any]
    seed: int
    status: Status
    reason: str = ""  # why it failed; empty: it did not
    waiting: str = ""  # what a deployment waits for; empty: it does not wait
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
        """Number of times that a buffer of replies was aggregated; 0: the rounds were synchronous."""
        return sum(result.staleness is not None for result in self.rounds)

    @property
    def staleness(self) -> tuple[float, int]:
        """Mean and largest staleness of the accepted replies of a buffered run, in steps."""
        flushed = [r for r in self.rounds if r.staleness is not None]
        weighted = sum(r.replies * (r.staleness or 0.0) for r in flushed)
        largest = max((r.max_staleness or 0 for r in flushed), default=0)
        return weighted / max(1, sum(r.replies for r in flushed)), largest

    @property
    def new_masks(self) -> list[RoundResult]:
        """Rounds after which the model has another mask than before; round 1 if it began with one."""
        before = [0, *(result.mask_version for result in self.rounds)]
        return [result for result, old in zip(self.rounds, before, strict=False) if result.mask_version != old]

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the scenario; empty where it is null, or something else than a section."""
        found = self.scenario.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def split(self) -> str:
        """Split that the rounds were evaluated on, such as "test" or "validation"."""
        return str(self.section("evaluation").get("split", "test"))

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.scenario.get("name", "run"))
