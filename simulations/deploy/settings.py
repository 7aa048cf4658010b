"""Settings of `fedpress server` and `fedpress client`: a YAML file each, validated key by key."""

from __future__ import annotations

import ipaddress
import re
from datetime import time
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fedpress.client import workloads
from fedpress.compression import files
from fedpress.compression.errors import FedpressError
from fedpress.compression.settings import Positive
from fedpress.simulations.scenario import diagnostics, yaml_source
from fedpress.simulations.scenario.section import Section


class SettingsError(FedpressError, ValueError):
    """A settings file cannot be read; the text lists every problem."""


def host_and_port(text: str) -> tuple[str, int]:
    """Return host and port of an address.

    >>> host_and_port("fed.example.org:9092"), host_and_port("[::1]:80")
    (('fed.example.org', 9092), ('::1', 80))

    Raises:
        ValueError: The text is not HOST:PORT.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError("expected HOST:PORT, such as fed.example.org:9092")
    return match[1] or match[2], int(match[3])


def opening_hours(text: str) -> tuple[time, time]:
    """Return begin and end of a span of the day, which may include midnight.

    >>> opening_hours("22:00-06:30")
    (datetime.time(22, 0), datetime.time(6, 30))

    Raises:
        ValueError: The text is not HH:MM-HH:MM, or the span is empty.
    """
    match = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", text.replace(" ", ""))
    try:
        if match is None:
            raise ValueError
        begin, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
    except ValueError:
        raise ValueError("expected two times of the day, such as 22:00-06:00") from None
    if begin == end:
        raise ValueError("begins when it ends; leave it out for the whole day")
    return begin, end


def open_at(hours: str, now: time) -> bool:
    """Return whether a time of the day is within a span.

    Args:
        hours: HH:MM-HH:MM, as `opening_hours` reads it.
        now: The time.

    >>> open_at("22:00-06:00", time(23, 30)), open_at("22:00-06:00", time(6, 0)), open_at("09:00-17:00", time(12, 0))
    (True, False, True)
    """
    begin, end = opening_hours(hours)
    return begin <= now < end if begin < end else now >= begin or now < end


def _address(text: str) -> str:
    host_and_port(text)
    return text


def _hours(text: str) -> str:
    opening_hours(text)
    return text


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _no_quotes(text: str) -> str:
    if "'" in text or "\n" in text:
        raise ValueError("must hold no ' and no new line, which Flower cannot pass on")
    return text


def _reference(text: str) -> str:
    if text != workloads.ANY and not workloads.REFERENCE.fullmatch(text):
        raise ValueError(f"expected 'module:attribute', such as {workloads.OWN}, or {workloads.ANY!r}")
    return text


Address = Annotated[str, AfterValidator(_address)]
Plain = Annotated[str, AfterValidator(_no_quotes)]


class ServerSettings(Section):
    """Settings of `fedpress server`."""

    scenario: str | None = Field(
        default=None, description="What to train: a scenario's name or file, as for `fedpress simulate`. Or give `app`."
    )
    overrides: tuple[str, ...] = Field(
        default=(), strict=False, description="Changes of single keys of the scenario, such as [clients=4, rounds=20]."
    )
    app: str | None = Field(default=None, description="In place of a scenario: the folder of a Flower app of your own.")
    run_config: dict[str, str | int | float | bool] = Field(
        default={}, description="Values that go over the app's own configuration."
    )
    out: str = Field(
        default="run", description="The run folder: new, or that of this run before a stop; it then goes on."
    )
    keys: str = Field(
        default="keys",
        description="The folder that `fedpress keys init` made. Nodes with a public key in its `nodes` are admitted.",
    )
    listen: Address = Field(default="0.0.0.0:9092", description="Where clients connect. Only over TLS.")
    superlink: Address | None = Field(
        default=None, description="Use the SuperLink that is running there, and start none."
    )
    operators: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        default=("127.0.0.0/8", "::1/128"),
        strict=False,
        description="Networks whose machines may start and stop runs and register keys, with the token that is in"
        " `keys/operator.token`. Clients need not be in it.",
    )
    message_mib: Positive | None = Field(
        default=None,
        description="Largest request of a client, in MiB; null: 256, or what the model needs. Less than the scenario's"
        " model needs (`fedpress simulate SCENARIO --check`) is refused before it starts. A reply of any size goes in"
        " requests of at most some 16 MiB for each of its parts. Flower has no limit of its own.",
    )
    state: str = Field(default="server-state", description="Folder for the database and the logs.")
    metrics: Address | None = Field(
        default="127.0.0.1:9464", description="Where /metrics (Prometheus) and /health are served; null: nowhere."
    )
    stay: bool = Field(default=False, description="Go on serving once the run is finished, until stopped.")
    hub: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="A command, as a list of words, that runs beside the server, such as `fedpress hub`.",
    )

    @model_validator(mode="after")
    def _one_thing_to_run(self) -> ServerSettings:
        problems: list[str] = []
        if (self.scenario is None) == (self.app is None):
            problems.append("scenario: give either a scenario or an app" + (", not both" if self.app else ""))
        if self.app is None and self.run_config:
            problems.append("run_config: is for an app; a scenario is changed by `overrides`")
        if self.app is not None and self.overrides:
            problems.append("overrides: are for a scenario; an app is changed by `run_config`")
        if problems:
            raise diagnostics.Problems(problems)
        return self


class ClientSettings(Section):
    """Settings of `fedpress client`."""

    superlink: Address = Field(description="The server's address.")
    ca: str = Field(default="ca.crt", description="The certificate authority's certificate, from the server's keys.")
    key: str = Field(description="This device's private key, as `fedpress keys node` makes it.")
    state: Plain = Field(
        default="client-state", description="Folder for what this client keeps between rounds, and logs."
    )
    partition: int | None = Field(
        default=None, ge=0, description="Which client of the scenario's partition this is, from 0; null: by its key."
    )
    data: Plain | None = Field(
        default=None,
        description="A folder with this device's own examples, in place of the task's `data_dir`; it trains on all.",
    )
    init: Plain | None = Field(
        default=None,
        description="This device's copy of the scenario's `init` file: where it holds the same weights, the model is"
        " not sent; null: the path in the scenario, if there is such a file here.",
    )
    base: Plain | None = Field(
        default=None,
        description="This device's copy of the scenario's `base`, a safetensors file or a folder of them; one with"
        " another hash is refused before anything is trained; null: this device has none, and is sent one, once, which"
        " it keeps in `bases` of `state`.",
    )
    workloads: tuple[Annotated[str, AfterValidator(_reference)], ...] = Field(
        default=(workloads.OWN,),
        strict=False,
        description="What the server may have this device run: functions and classes that are installed here, as"
        " 'module:attribute'. By default fedpress's own, on its own tasks. ['*']: whatever the server names or sends.",
    )
    tier: Plain | None = Field(default=None, description="The tier of this device.")
    probe: Plain | None = Field(default=None, description="A file of `fedpress probe --json`, which names the tier.")
    threads: int | None = Field(default=None, ge=1, description="Threads to train on; null: as many as PyTorch takes.")
    warm: bool = Field(
        default=False,
        description="Keep one process with PyTorch, model and data loaded, and fork it for every message: rounds take"
        " seconds less and a fraction of the processor time, for some 350 MB. Data is read again every 6 hours.",
    )
    memory_gib: Positive | None = Field(
        default=None, description="Address space of each process, in GiB; PyTorch alone takes about 2. null: no limit."
    )
    only_if: str | None = Field(
        default=None, description="A shell command; the client takes part while it exits with 0. Such as on_ac_power."
    )
    hours: Annotated[str, AfterValidator(_hours)] | None = Field(
        default=None, description='When the client takes part, in local time, such as "22:00-06:00"; null: always.'
    )
    metrics: Address | None = Field(
        default=None, description="Where /metrics (Prometheus) and /health are served; null: nowhere."
    )


SERVER_EXAMPLE = ServerSettings(scenario="digits", overrides=("clients=2", "sampling.clients_per_round=2", "rounds=5"))
CLIENT_EXAMPLE = ClientSettings(superlink="127.0.0.1:9092", ca="keys/ca.crt", key="keys/nodes/node-0")

S = TypeVar("S", bound=Section)


def load(path: Path, kind: type[S]) -> S:
    """Read a settings file. Relative paths in it are taken from its folder, and returned absolute.

    Args:
        path: The YAML file.
        kind: `ServerSettings` or `ClientSettings`.

    Raises:
        SettingsError: The file cannot be read or is not valid: all problems are listed.
    """
    try:
        raw = yaml_source.read(files.read_text(path))
    except OSError as error:
        command = f"fedpress {kind.__name__.removesuffix('Settings').lower()}"
        raise SettingsError(
            f"cannot read {path}: {error.strerror or error}; `{command} --example` prints one to start from"
        ) from None
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    try:
        settings = kind.model_validate(raw)
    except ValidationError as error:
        lines = diagnostics.explain(error, kind)
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        raise SettingsError("\n  ".join([f"{path}: {count}", *lines])) from None
    return settings.model_copy(update=_absolute(settings, path.parent.resolve()))


def _absolute(settings: Section, folder: Path) -> dict[str, str]:
    """Return the values of keys that name files, as absolute paths."""
    changed = {}
    for key in ("out", "keys", "state", "app", "ca", "key", "data", "init", "base", "probe"):
        if isinstance(given := getattr(settings, key, None), str):
            changed[key] = str(folder / Path(given).expanduser())
    scenario = getattr(settings, "scenario", None)
    if scenario and (folder / Path(scenario).expanduser()).exists():  # else it is a name
        changed["scenario"] = str(folder / Path(scenario).expanduser())
    return changed
