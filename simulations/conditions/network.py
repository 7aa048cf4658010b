"""Network model: transfer times and energy of each client, on a virtual clock that deadlines follow.

Nothing here sleeps. An engine computes how long a client would need and advances the clock; a round of slow clients
takes no longer to simulate than one of fast clients, and the same virtual time on every machine.

>>> network = Network(NetworkSettings(up_mbit=8.0, down_mbit=80.0, latency=0.0, rate_sigma=0.0), seed=1)
>>> network.seconds(client=0, round=1, down_bytes=1_000_000, examples=50, up_bytes=100_000)
0.7

`PROFILES` are links by name. docs/concepts/network.md explains their figures and the model of a transfer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import field_validator

from fedpress.compression import seeds, suggest
from fedpress.compression.ledger import DIRECTIONS, Ledger
from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass
from fedpress.simulations.conditions import bandwidth_trace
from fedpress.simulations.conditions.bandwidth_trace import Floats


class VirtualClock:
    """Virtual seconds since the start of a run; only `advance_to` moves the clock, and only forward.

    Args:
        start: Seconds at which the clock starts.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return virtual seconds since the start of the run."""
        return self._now

    def advance_to(self, time: float) -> None:
        """Move the clock to `time`.

        Raises:
            ValueError: `time` is in the past, or not a finite number.
        """
        if not (math.isfinite(time) and time >= self._now):
            raise ValueError(f"the clock stands at {self._now} s and cannot go to {time} s, only forward")
        self._now = time


class Profile(NamedTuple):
    """Kind of link: the figures of `NetworkSettings`, none of them null. Rates are medians over the clients."""

    up_mbit: float
    down_mbit: float
    latency: float
    jitter: float = 0.0
    packet_loss: float = 0.0
    up_joules_per_byte: float = 0.0
    down_joules_per_byte: float = 0.0


def _joules_per_byte(milliwatts_per_mbit: float, milliwatts: float, mbit: float) -> float:
    """Joules a byte of a radio that draws `milliwatts_per_mbit` * rate + `milliwatts` while it transfers at `mbit`."""
    return 8e-9 * (milliwatts_per_mbit + milliwatts / mbit)


DEFAULT: Final = Profile(up_mbit=1.0, down_mbit=10.0, latency=0.1)
"""Link of a network without a profile: assumed, not measured, and without energy."""
PROFILES: Final[Mapping[str, Profile]] = {
    # Rates: assumed, an access point that is shared; what lies behind it is faster. Round trip of 20 ms: assumed.
    # Power: Huang et al. 2012, table 4, 283.17 mW per Mbit/s up, 137.01 down, 132.86 mW besides.
    "wifi": Profile(
        20.0, 20.0, 0.01, 0.005, 1e-4, _joules_per_byte(283.17, 132.86, 20.0), _joules_per_byte(137.01, 132.86, 20.0)
    ),
    # Rates: world medians of fixed lines, Ookla Speedtest Global Index, August 2024 (93.99 down, 48.36 up); its round
    # trip was 10 ms in November 2022. Power: assumed, a network adapter that draws 1 W while it transfers.
    "fibre": Profile(48.0, 94.0, 0.005, 0.001, 1e-5, _joules_per_byte(0, 1000, 48.0), _joules_per_byte(0, 1000, 94.0)),
    # Rates and round trip of 70 ms: Huang et al. 2012, medians of LTE in their measurements of users (13 down, 6 up).
    # Power: table 4 there, 438.39 mW per Mbit/s up, 51.97 down, 1288.04 mW besides.
    "lte": Profile(
        6.0, 13.0, 0.035, 0.01, 1e-4, _joules_per_byte(438.39, 1288.04, 6.0), _joules_per_byte(51.97, 1288.04, 13.0)
    ),
    # Rates: assumed, the order of what Huang et al. 2010 measured in American 3G; round trip of 200 ms: assumed.
    # Power: Huang et al. 2012, table 4, 868.98 mW per Mbit/s up, 122.12 down, 817.88 mW besides: 23 uJ a byte up, where
    # Balasubramanian et al. 2009 have 25 (0.025 J per kB).
    "3g": Profile(
        0.4, 1.0, 0.1, 0.05, 1e-3, _joules_per_byte(868.98, 817.88, 0.4), _joules_per_byte(122.12, 817.88, 1.0)
    ),
    # An SX127x at spreading factor 7, coding rate 4/5, in one channel of 250 kHz: 10.94 kbit/s on the air (Semtech's
    # data sheet; data rate 6 of LoRaWAN in Europe). The band from 869.4 to 869.65 MHz allows a sender a tenth of the
    # time (ETSI EN 300 220), which is folded into the rates: 1.09 kbit/s. Power: on the air only, from 3.3 V, 29 mA at
    # +13 dBm and 10.8 mA in reception (data sheet). Latency (a full packet on the air), jitter and loss: assumed.
    "lora-like": Profile(
        0.00109,
        0.00109,
        0.2,
        0.1,
        0.05,
        _joules_per_byte(0, 29 * 3.3, 0.01094),
        _joules_per_byte(0, 10.8 * 3.3, 0.01094),
    ),
}
"""Kinds of links by name. All jitter and loss is assumed: little where the radio sends again by itself.

Huang et al., "A Close Examination of Performance and Power Characteristics of 4G LTE Networks", MobiSys 2012, and
"Anatomizing Application Performance Differences on Smartphones", MobiSys 2010. Balasubramanian et al., "Energy
Consumption in Mobile Phones: A Measurement Study and Implications for Network Applications", IMC 2009.
"""
SEGMENT_BYTES: Final = 1460
"""Payload of a TCP segment on Ethernet: 1500 bytes without the headers of IP and TCP."""


def shares(profile: Any) -> dict[str, float]:
    """Return each profile's share of the clients by name, sorted; empty for None.

    Args:
        profile: Name of a profile, or shares by name.

    Raises:
        ValueError: It is neither, a profile does not exist, or the shares do not sum to 1.
    """
    given = {} if profile is None else {profile: 1.0} if isinstance(profile, str) else profile
    if not isinstance(given, Mapping) or not (given or profile is None):
        raise ValueError("expected the name of a profile, or shares by name, such as {lte: 0.7, wifi: 0.3}")
    for name, share in given.items():
        if name not in PROFILES:
            raise ValueError(f"there is no profile {name!r}, expected {suggest.choices(PROFILES, name)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
            raise ValueError(f"the share of {name} is {share!r}, expected a positive number")
    if given and abs(sum(given.values()) - 1) > 1e-6:
        raise ValueError(f"the shares sum to {sum(given.values()):g}, expected 1")
    return dict(sorted(given.items()))  # what is drawn does not depend on their order


@dataclass(frozen=True, config=STRICT)
class NetworkSettings(Settings):
    """Links and speeds of the clients on a virtual clock: it decides who is late, and costs no real time.

    A loss of packets slows a transfer down as it does TCP: it is no faster than the bound of Mathis et al., "The
    Macroscopic Behavior of the TCP Congestion Avoidance Algorithm", 1997: segment / round trip * sqrt(1.5 / loss).

    Raises:
        ValueError: A value is out of range, there is no such profile, or the rates have two sources.
    """

    profile: str | dict[str, float] | None = Field(
        default=None,
        description=f"Kind of link: {', '.join(PROFILES)}; or the share of the clients that have each, such as"
        " {lte: 0.7, wifi: 0.3}. It sets the keys from up_mbit to down_joules_per_byte that are null.",
    )
    up_mbit: Positive | None = Field(
        default=None,
        description="Upload of the median client, 10^6 bits a second. null: the profile's; without one,"
        f" {DEFAULT.up_mbit:g}.",
    )
    down_mbit: Positive | None = Field(
        default=None,
        description=f"Download of the median client. null: the profile's, or {DEFAULT.down_mbit:g}.",
    )
    latency: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Seconds a message takes besides its bytes, each way. null: the profile's, or"
        f" {DEFAULT.latency:g}.",
    )
    jitter: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Mean of the seconds that each message takes more, at random. null: the profile's, or 0.",
    )
    packet_loss: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Part of the packets that are lost and sent again, which slows a transfer down. null: the"
        " profile's, or 0.",
    )
    up_joules_per_byte: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        json_schema_extra=ADVANCED,
        description="Energy that a client's device spends for a byte it sends. null: the profile's, or 0.",
    )
    down_joules_per_byte: Annotated[float, Field(ge=0)] | None = Field(
        default=None, json_schema_extra=ADVANCED, description="Energy for a byte it gets. null: the profile's, or 0."
    )
    examples_per_second: Positive = Field(default=100.0, description="Training speed of the median client.")
    rate_sigma: float = Field(
        default=0.5,
        ge=0,
        description="Unevenness of rates and speed: standard deviation of their logarithms, drawn independently for"
        " each client; 0: all clients alike; 0.5: two thirds of them between 0.6 and 1.6 times the median.",
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
        shares(given)
        return given

    def __post_init__(self) -> None:
        for key in ("up_mbit", "down_mbit"):
            if self.trace is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} has no meaning beside trace, which has the rates; leave one out")


class Link(NamedTuple):
    """Link and training speed of one client."""

    up_mbit: float  # 10^6 bits a second
    down_mbit: float
    examples_per_second: float


class _Drawn(NamedTuple):
    """Draws of one client: profile; factors of upload, download and speed over their medians, shape (3,); link."""

    profile: Profile
    factors: Floats
    link: Link


_UNCHANGED: Final = NetworkSettings()


class Network:
    """Link and speed of every client, drawn from a seed; the figures given are medians over the clients.

    Args:
        settings: A scenario's `network`. A figure that is None is that of the client's profile, or of `DEFAULT`.
        seed: Of all draws.
        clients: Number of clients that a trace must have rows for.

    Raises:
        TraceError: The trace cannot be used.
    """

    def __init__(self, settings: NetworkSettings = _UNCHANGED, *, seed: int, clients: int = 0) -> None:
        given = {name: getattr(settings, name) for name in Profile._fields if getattr(settings, name) is not None}
        by_name = shares(settings.profile)
        self._profiles = [PROFILES[name]._replace(**given) for name in by_name] or [DEFAULT._replace(**given)]
        self._up_to = np.cumsum(list(by_name.values()) or [1.0])
        self._settings = settings
        self._seed = seed
        self._trace = bandwidth_trace.load(settings.trace) if settings.trace is not None else None
        self._drawn: dict[int, _Drawn] = {}
        for client in range(clients if self._trace else 0):
            self._course(client)

    def profile(self, client: int) -> Profile:
        """Return the profile of a client, by its index from 0."""
        return self._of(client).profile

    def link(self, client: int) -> Link:
        """Return the link of a client, always the same. With a trace, its rates do not count."""
        return self._of(client).link

    def answers(self, client: int, round: int) -> bool:
        """Whether a client answers in a round; False with probability `dropout`.

        Args:
            client: Index of the client, from 0.
            round: Number of the round, from 1.
        """
        if not self._settings.dropout:
            return True
        draw = np.random.default_rng(seeds.derive("network", self._seed, "dropout", client, round))
        return bool(draw.random() >= self._settings.dropout)

    def seconds(
        self, *, client: int, round: int, down_bytes: int, examples: int, up_bytes: int, start: float = 0.0
    ) -> float:
        """Return virtual seconds from sending an order to the whole reply; infinite if the client does not answer.

        Args:
            client: Index of the client.
            round: Round of the order.
            down_bytes: Serialized size of the order.
            examples: Examples that the client trains on, counted as often as it sees them.
            up_bytes: Serialized size of the reply.
            start: Time of the virtual clock at which the order is sent; matters to a trace only.
        """
        if not self.answers(client, round):
            return math.inf
        jitter = self._jitter(client, round)
        train = examples / self.link(client).examples_per_second
        down_latency = self._latency(client, start) + jitter[0]
        down = self._transfer(client, "down", down_bytes, start + down_latency)
        done = start + down_latency + down + train
        up_latency = self._latency(client, done) + jitter[1]
        up = self._transfer(client, "up", up_bytes, done + up_latency)
        return down_latency + up_latency + down + train + up

    def joules(self, client: int, *, up_bytes: int, down_bytes: int) -> float:
        """Return the joules that a client's device spends on a transfer, retransmissions included.

        Excluded are computation and the tail: the seconds in which a radio stays awake after a transfer.

        Args:
            client: Index of the client, from 0.
            up_bytes: Bytes sent by the client.
            down_bytes: Bytes received by it.
        """
        profile = self.profile(client)
        spent = up_bytes * profile.up_joules_per_byte + down_bytes * profile.down_joules_per_byte
        return spent / (1 - profile.packet_loss)

    def joules_of(self, ledger: Ledger, round: int | None = None) -> float:
        """Return the joules for the bytes of a ledger, all clients together; node n is client n - 1.

        Args:
            ledger: Bytes of a run.
            round: The round that is counted; None: all of them.
        """
        columns = ledger.arrays()
        counts = np.ones(len(columns["bytes"]), bool) if round is None else columns["round"] == round
        node, up, size = (columns[name][counts] for name in ("node", "direction", "bytes"))
        up = up == DIRECTIONS.index("up")
        nodes, place = np.unique(node, return_inverse=True)
        sent, received = (np.bincount(place, weights=size * part, minlength=len(nodes)) for part in (up, ~up))
        by_node = zip(nodes.tolist(), sent.tolist(), received.tolist(), strict=True)
        return sum(self.joules(node - 1, up_bytes=int(ups), down_bytes=int(downs)) for node, ups, downs in by_node)

    def _of(self, client: int) -> _Drawn:
        if client not in self._drawn:
            profile = self._profiles[0]
            if len(self._profiles) > 1:
                draw = np.random.default_rng(seeds.derive("network", self._seed, "profile", client))
                place = draw.random() * self._up_to[-1]
                profile = self._profiles[int(np.searchsorted(self._up_to, place, side="right"))]
            draw = np.random.default_rng(seeds.derive("network", self._seed, "link", client))
            factors = np.asarray(np.exp(self._settings.rate_sigma * draw.standard_normal(3)))
            medians = (profile.up_mbit, profile.down_mbit, self._settings.examples_per_second)
            link = Link(*(float(median * factor) for median, factor in zip(medians, factors, strict=True)))
            self._drawn[client] = _Drawn(profile, factors, link)
        return self._drawn[client]

    def _course(self, client: int) -> bandwidth_trace.Course | None:
        return self._trace.of(client) if self._trace else None

    def _jitter(self, client: int, round: int) -> tuple[float, float]:
        """Return the seconds that are added to the order and to the reply."""
        mean = self.profile(client).jitter
        if not mean:
            return 0.0, 0.0
        draw = np.random.default_rng(seeds.derive("network", self._seed, "jitter", client, round))
        down, up = draw.exponential(mean, 2).tolist()
        return down, up

    def _latency(self, client: int, time: float) -> float:
        course = self._course(client)
        if course is None or course.latency is None:
            return self.profile(client).latency
        return float(course.latency[course.row(time)])

    def _transfer(self, client: int, way: Literal["up", "down"], size: int, start: float) -> float:
        """Return the seconds that `size` bytes take, from `start` on.

        A part `packet_loss` of all packets is lost, so that 1 / (1 - packet_loss) times the bytes are sent.
        """
        profile, course = self.profile(client), self._course(client)
        megabits = 8e-6 * size / (1 - profile.packet_loss)
        if course is None:
            link = self.link(client)
            rate = link.up_mbit if way == "up" else link.down_mbit
            return megabits / min(rate, float(_bound(profile.latency, profile.packet_loss)))
        latency = profile.latency if course.latency is None else course.latency
        factor = self._of(client).factors[0 if way == "up" else 1]
        rates = factor * (course.up_mbit if way == "up" else course.down_mbit)
        return course.seconds(start, megabits, np.minimum(rates, _bound(latency, profile.packet_loss)))


def _bound(latency: float | Floats, packet_loss: float) -> Floats:
    """Return the bound on TCP's rate, 10^6 bits a second (Mathis et al. 1997); infinite without loss or latency."""
    with np.errstate(divide="ignore"):
        return np.asarray(
            np.divide(8e-6 * SEGMENT_BYTES * math.sqrt(1.5), 2 * np.asarray(latency) * math.sqrt(packet_loss))
        )
