"""The sections of a scenario on its rounds: who trains what, how updates and models travel, what goes wrong."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedpress.compression import suggest
from fedpress.compression.encoders import recipes
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization
from fedpress.compression.settings import Fraction, Positive
from fedpress.compression.wire import values
from fedpress.simulations.conditions import network
from fedpress.simulations.scenario.section import Section
from fedpress.simulations.tasks import registry


class TaskChoice(Section):
    """Model, data and loss. Keys besides these two are options of the task, such as `data_dir` of fashion-mnist."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="A built-in task (digits, fashion-mnist, text) or your own class as 'module:Class'.")
    folder: str | None = Field(
        default=None,
        description="Where the module of your own class is looked for; by default beside the scenario file.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        registry.check_name(name)
        return name

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the task's class."""
        return dict(self.model_extra or {})


class Partition(Section):
    """Which client has which training examples."""

    kind: Literal["iid", "dirichlet", "labels", "natural"] = Field(
        default="dirichlet",
        description="iid: at random; dirichlet: skewed labels; labels: few labels for each client; natural: by the"
        " task's own groups, a client is a book of `text`.",
    )
    alpha: Positive = Field(
        default=0.5, description="Dirichlet concentration: 0.1 is very skewed, 100 is close to iid."
    )
    labels_per_client: int = Field(default=2, ge=1, description="How many labels a client has, for kind labels.")
    sizes: Literal["natural", "equal"] = Field(
        default="natural", description="natural: as the draw falls, uneven; equal: N // clients examples for everyone."
    )

    @model_validator(mode="after")
    def _groups_as_they_are(self) -> Partition:
        if self.kind == "natural" and self.sizes == "equal":
            raise ValueError("sizes: equal does not go with kind natural, whose groups keep their own sizes")
        return self


class Sampling(Section):
    """Who takes part in a round, and when the round closes."""

    schedule: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="synchronous: all clients of a round train from the same model; buffered: FedBuff, clients work all"
        " the time, and the model steps once per_round replies are in. buffered needs network.",
    )
    per_round: int = Field(default=10, ge=1, description="Clients whose replies a round waits for.")
    concurrency: int | None = Field(default=None, ge=1, description="For buffered: clients at work at any time.")
    staleness: float = Field(
        default=0.5,
        ge=0,
        description="For buffered: a reply s steps behind counts (1 + s)^-staleness of its examples; 0: all alike.",
    )
    max_staleness: int | None = Field(
        default=None, ge=0, description="For buffered: replies that are more steps behind are refused."
    )
    over_selection: int = Field(
        default=0,
        ge=0,
        description="Clients asked besides; the round closes with the first per_round replies. Needs network.",
    )
    min_replies: int = Field(default=1, ge=1, description="Good replies below which a round changes nothing.")
    deadline: Positive | None = Field(
        default=None, description="Virtual seconds after which a round closes without the late ones. Needs network."
    )


class EncoderChoice(Section):
    """What a client sends of its update: its parts, or a recipe. The share of entries is the top-level `density`."""

    recipe: str | None = Field(
        default=None,
        description=f"A published method in place of kind, scope, values and feedback: {', '.join(recipes.RECIPES)}.",
    )
    bits: int | None = Field(default=None, description="For the recipes qsgd (2 to 8) and eden (1 to 4).")
    rank: int | None = Field(default=None, description="For the recipe powersgd.")
    kind: Literal["top_k", "random_k", "dense"] = Field(
        default="top_k",
        description="top_k: the largest entries; random_k: random ones; dense: everything, as FedAvg does.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="top_k over the whole model, or in every tensor by itself."
    )
    values: str = Field(default="step", description=f"Number format of the entries sent: {', '.join(values.names())}.")
    feedback: Literal["none", "residual", "step_ahead", "cafe"] = Field(
        default="step_ahead",
        description="What happens to the entries not sent: none: lost; residual: added to the next update (error"
        " feedback); step_ahead: besides, training starts from the model plus what is kept back (SA-PEF); cafe: lost,"
        " but what is sent is the difference from how the model moved lately (CAFe). Needs downlink and optimizer sgd.",
    )
    residual: Literal["float32", "float16"] = Field(
        default="float32",
        description="How a client keeps what it keeps back: float16 takes half the disk; what its rounding drops is"
        " counted.",
    )
    clip_norm: Positive | None = Field(
        default=None, description="Largest L2 norm of an update; longer ones are scaled down."
    )
    warm_up_rounds: int = Field(default=0, ge=0, description="Rounds in which the density falls to its value (DGC).")
    warm_up_density: Fraction = Field(default=0.25, description="Density in the first round of the warm-up.")

    @field_validator("values")
    @classmethod
    def _format(cls, name: str) -> str:
        if name not in values.names():
            raise ValueError(f"expected {suggest.choices(values.names(), name)}")
        return name

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in recipes.RECIPES:
            raise ValueError(f"expected {suggest.choices(recipes.RECIPES, name)}")
        return name

    @model_validator(mode="after")
    def _of_the_recipe(self) -> EncoderChoice:
        takes = recipes.RECIPES[self.recipe].takes if self.recipe else ()
        for key in ("bits", "rank"):
            if getattr(self, key) is not None and key not in takes:
                taking = [name for name, recipe in recipes.RECIPES.items() if key in recipe.takes]
                raise ValueError(f"{key} is for the recipes {', '.join(taking)}; recipe is {self.recipe or 'null'}")
        if self.residual != "float32" and self.feedback in ("none", "cafe"):
            raise ValueError(
                f"residual {self.residual} has no meaning with feedback {self.feedback}: nothing is kept back"
            )
        if self.recipe is None:
            return self
        for key in ("kind", "scope", "values", "feedback", "residual"):
            if self.changed(key):
                raise ValueError(f"{key} has no meaning beside recipe {self.recipe}, which rules it; leave one out")
        if self.warm_up_rounds and "density" not in takes:
            raise ValueError(f"warm_up_rounds has no meaning for recipe {self.recipe}, which has no density")
        self.made_by_recipe(1.0)  # refuses bits or a rank out of range
        return self

    def made_by_recipe(self, density: float) -> Encoder[Any]:
        """Return the encoder of the recipe, which must be given."""
        recipe = recipes.RECIPES[str(self.recipe)]
        options = {"density": density, "bits": self.bits, "rank": self.rank}
        return recipe.make(**{key: options[key] for key in recipe.takes if options[key] is not None})


class DownlinkChoice(Section):
    """How the model goes down: clients keep it, and get what has changed since they were last here."""

    density: Fraction = Field(default=0.005, description="Share of the model's entries that one round changes.")
    levels: int = Field(
        default=1, ge=1, le=255, description="Steps that an entry may move in a round; 1: all move as far (ternary)."
    )


class ServerOptimizer(Section):
    """How the server steps along the mean update (Reddi et al., "Adaptive Federated Optimization", 2021)."""

    optimizer: Literal["sgd", "adam", "yogi", "adagrad", "majority_vote"] = Field(
        default="sgd",
        description="Rule of the step: sgd, adam, yogi, adagrad; majority_vote for the encoder signsgd, every weight"
        " moves by the learning rate.",
    )
    learning_rate: Positive = Field(default=1.0, description="Server learning rate; 1 with sgd is FedAvg.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="For sgd.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="For adam and yogi: decay of the first moment.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="For adam and yogi: decay of the second moment.")
    epsilon: float = Field(
        default=1e-3,
        ge=1e-3,
        description="For adam, yogi and adagrad: keeps coordinates that nobody sends from exploding.",
    )

    averaging: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the mean of the models of all rounds, which is then what is evaluated and published; 0.9:"
        " of about ten rounds; 0: the newest model.",
    )

    @model_validator(mode="after")
    def _used(self) -> ServerOptimizer:
        takes: dict[str, set[str]] = {"sgd": {"momentum"}, "adagrad": {"epsilon"}, "majority_vote": set()}
        own = takes.get(self.optimizer, {"beta1", "beta2", "epsilon"})
        for key in ("momentum", "beta1", "beta2", "epsilon"):
            if key not in own and self.changed(key):
                raise ValueError(f"{key} has no meaning for optimizer {self.optimizer}, which takes {sorted(own)}")
        return self


class Sparsity(Section):
    """Which weights the model in training has; clients train, send and get those only."""

    method: Literal["snip", "grasp", "synflow", "erk", "magnitude", "gradual", "feddst", "rigl"] = Field(
        default="snip",
        description="snip, grasp, synflow, erk (at random) or magnitude: a mask before round 1 that stays; gradual:"
        " pruned by magnitude as training goes; feddst, rigl: the mask moves, clients vote on it.",
    )
    density: Fraction = Field(
        default=0.1, description="Share of the weights that is left; biases and the like all are."
    )
    scope: Literal["global", "layer", "erk"] | None = Field(
        default=None,
        description="Who competes: all weights, those of a layer (each with the same density), or those of a layer with"
        " ERK densities. null: erk for erk, feddst and rigl, layer for gradual, else global.",
    )
    start: Literal["snip", "grasp", "synflow", "erk", "magnitude"] = Field(
        default="erk", description="For feddst and rigl: how their first mask is made."
    )
    begin: int = Field(default=0, ge=0, description="For gradual: round in which its cubic schedule starts.")
    end: int | None = Field(
        default=None,
        ge=1,
        description="For gradual: round after which the density is reached; for feddst and rigl: round from which"
        " on the mask stays. null: two thirds of the rounds.",
    )
    every: int = Field(default=5, ge=1, description="For gradual, feddst and rigl: rounds from one change to the next.")
    fraction: Fraction = Field(
        default=0.3,
        description="For feddst and rigl: share of a layer's weights that is exchanged, at first; falls by a cosine.",
    )

    @property
    def initial(self) -> AtInitialization | None:
        """How the first mask is made; None: all weights are there at first."""
        if self.method == "gradual":
            return None
        moving = self.method in ("feddst", "rigl")
        method: Any = self.start if moving else self.method
        scope = self.scope or ("erk" if moving else None)
        return AtInitialization(method, self.density, scope)

    @property
    def changes(self) -> bool:
        """Whether the mask changes during the rounds."""
        return self.method in ("gradual", "feddst", "rigl")

    @model_validator(mode="after")
    def _used(self) -> Sparsity:
        takes = {"gradual": {"begin", "end", "every"}}
        own = takes.get(self.method, {"start", "end", "every", "fraction"} if self.changes else set())
        for key in ("start", "begin", "end", "every", "fraction"):
            if key not in own and self.changed(key):
                raise ValueError(f"{key} has no meaning for method {self.method}")
        _ = self.initial  # refuses what does not go together
        return self


class Evaluation(Section):
    """When and on what the server evaluates the model that clients hold. Round 1 and the last 10 always are."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    split: Literal["test", "validation", "proxy"] = Field(
        default="test",
        description="test: for what is reported; validation: for whatever is chosen by it, such as a learning rate;"
        " proxy: the same on the larger part that students are distilled on, for runs without students.",
    )


class NetworkChoice(Section):
    """Links and speeds of the clients on a virtual clock: it decides who is late, and costs no real time."""

    profile: str | dict[str, float] | None = Field(
        default=None,
        description=f"Kind of link: {', '.join(network.PROFILES)}; or the share of the clients that have each, such as"
        " {lte: 0.7, wifi: 0.3}. It sets the keys from up_mbit to down_joules_per_byte that are null.",
    )
    up_mbit: Positive | None = Field(
        default=None,
        description="Upload of the median client, 10^6 bits a second. null: the profile's; without one,"
        f" {network.DEFAULT.up_mbit:g}.",
    )
    down_mbit: Positive | None = Field(
        default=None,
        description=f"Download of the median client. null: the profile's, or {network.DEFAULT.down_mbit:g}.",
    )
    latency: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Seconds a message takes besides its bytes, each way. null: the profile's, or"
        f" {network.DEFAULT.latency:g}.",
    )
    jitter: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Mean of the seconds that each message takes more, at random. null: the profile's, or 0.",
    )
    loss: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Part of the packets that are lost and sent again, which slows a transfer down. null: the"
        " profile's, or 0.",
    )
    up_joules_per_byte: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Energy that a client's device spends for a byte it sends. null: the profile's, or 0.",
    )
    down_joules_per_byte: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Energy for a byte it gets. null: the profile's, or 0."
    )
    examples_per_second: Positive = Field(default=100.0, description="Training speed of the median client.")
    spread: float = Field(
        default=0.5,
        ge=0,
        description="Unevenness of rates and speed: deviation of the logarithms; 0: all clients alike.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Chance that a client does not answer. Needs a deadline."
    )
    trace: str | None = Field(
        default=None,
        description="CSV file with the rates over time, in place of up_mbit and down_mbit; its columns: client (or *),"
        " seconds, up_mbit, down_mbit and perhaps latency. Its path is seen from the scenario's file.",
    )

    @field_validator("profile", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        network.shares(given)
        return given

    @model_validator(mode="after")
    def _one_source_of_rates(self) -> NetworkChoice:
        for key in ("up_mbit", "down_mbit"):
            if self.trace is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} has no meaning beside trace, which has the rates; leave one out")
        return self


class FaultChoice(Section):
    """What goes wrong on purpose: a chance of each fault for every client and round."""

    crashes: float = Field(default=0.0, ge=0, le=1, description="A client dies at work; its state stays as it was.")
    forgets: float = Field(default=0.0, ge=0, le=1, description="A client starts without the state that it had kept.")
    diverges: float = Field(default=0.0, ge=0, le=1, description="Its training ends in NaN.")
    lost: float = Field(default=0.0, ge=0, le=1, description="Its reply never arrives.")
    doubled: float = Field(default=0.0, ge=0, le=1, description="Its reply arrives twice.")
    late: float = Field(default=0.0, ge=0, le=1, description="Its reply takes late_seconds more.")
    damaged: float = Field(default=0.0, ge=0, le=1, description="A bit of its update flips on the way.")
    late_seconds: Positive = Field(default=60.0, description="Virtual seconds.")
