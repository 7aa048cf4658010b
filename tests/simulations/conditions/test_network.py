"""Virtual time and energy: exact where nothing is drawn, the same by seed where something is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.compression.ledger import Ledger
from fedpress.simulations.conditions.network import DEFAULT, PROFILES, Network, VirtualClock

EVEN = {
    "up_mbit": 1.0,
    "down_mbit": 10.0,
    "examples_per_second": 100.0,
    "latency": 0.1,
    "spread": 0.0,
    "dropout": 0.0,
    "seed": 1,
}
NAMES = st.sampled_from(sorted(PROFILES))
BYTES = st.integers(0, 10**9)


def seconds(of: Network, client: int = 3, round: int = 1, down: int = 50_000, examples: int = 50, up: int = 9_000):
    return of.seconds(client=client, round=round, down_bytes=down, examples=examples, up_bytes=up)


def test_time_is_the_sum_of_its_parts():
    even = Network(**EVEN)
    assert seconds(even, down=1_250_000, up=125_000) == pytest.approx(2 * 0.1 + 1.0 + 0.5 + 1.0)


def test_the_draws_of_a_seed_are_what_they_were():
    """From before there were profiles: what they draw must not move these."""
    uneven = Network(**{**EVEN, "spread": 0.5, "dropout": 0.3})
    assert tuple(uneven.link(1)) == (1.2759280076100046, 13.804069143017195, 76.77939813323958)
    times = [seconds(uneven, client, round, 123_456, 321, 7_890) for client in range(4) for round in (1, 2)]
    assert times == [
        math.inf, 2.572222955989576, 4.501826491026874, math.inf, math.inf, 3.263550560244014, 7.724872150908183,
        math.inf,
    ]  # fmt: skip


def test_links_are_spread_around_their_medians_and_stay_the_same():
    uneven = Network(**{**EVEN, "spread": 0.5})
    links = np.array([uneven.link(client) for client in range(500)])
    assert np.median(links, axis=0) == pytest.approx([1.0, 10.0, 100.0], rel=0.15)
    assert np.std(np.log(links), axis=0) == pytest.approx([0.5] * 3, rel=0.15)
    assert abs(np.corrcoef(np.log(links).T)[0, 1]) < 0.2
    assert uneven.link(7) == Network(**{**EVEN, "spread": 0.5}).link(7)
    assert uneven.link(7) != Network(**{**EVEN, "spread": 0.5, "seed": 2}).link(7)


def test_who_drops_out_takes_for_ever():
    flaky = Network(**{**EVEN, "dropout": 0.3})
    answered = [flaky.answers(client, round) for client in range(50) for round in range(20)]
    assert np.mean(answered) == pytest.approx(0.7, abs=0.05)
    silent = next(client for client in range(50) if not flaky.answers(client, 1))
    assert flaky.seconds(client=silent, round=1, down_bytes=1, examples=1, up_bytes=1) == math.inf
    assert any(flaky.answers(silent, round) for round in range(20))


@given(NAMES, BYTES, BYTES, BYTES, st.integers(0, 30), st.integers(1, 30))
def test_more_bytes_take_more_time_and_energy(name, down, up, more, client, round):
    of = Network(profile=name, seed=1)
    least = seconds(of, client, round, down, 50, up)
    assert least > 0
    assert seconds(of, client, round, down + more, 50, up) >= least <= seconds(of, client, round, down, 50, up + more)
    joules = of.joules(client, up_bytes=up, down_bytes=down)
    assert of.joules(client, up_bytes=up + more, down_bytes=down) >= joules >= 0
    assert of.joules(client, up_bytes=up, down_bytes=down + more) >= joules


@given(NAMES, st.floats(1, 100), st.floats(0, 0.3), st.integers(0, 30))
def test_more_bandwidth_takes_less_time_and_more_loss_takes_more(name, faster, loss, client):
    up, down = PROFILES[name].up_mbit, PROFILES[name].down_mbit
    slow = seconds(Network(profile=name, seed=1, loss=loss), client)
    fast = seconds(Network(profile=name, seed=1, loss=loss, up_mbit=faster * up, down_mbit=faster * down), client)
    assert fast <= slow <= seconds(Network(profile=name, seed=1, loss=loss + 0.1), client)


@given(BYTES, BYTES, st.integers(0, 10**6), st.integers(0, 30))
def test_the_parts_of_the_time_add_up(down, up, examples, client):
    of = Network(profile="lte", seed=1)
    alone = [
        seconds(of, client, 1, down, 0, 0),
        seconds(of, client, 1, 0, examples, 0),
        seconds(of, client, 1, 0, 0, up),
    ]
    waiting = seconds(of, client, 1, 0, 0, 0)
    assert seconds(of, client, 1, down, examples, up) == pytest.approx(sum(alone) - 2 * waiting)


def test_each_message_has_its_own_jitter_around_the_mean():
    of = Network(**EVEN, jitter=0.05)
    extra = [seconds(of, client, round) - seconds(Network(**EVEN)) for client in range(40) for round in range(50)]
    assert min(extra) > 0
    assert np.mean(extra) == pytest.approx(2 * 0.05, rel=0.1)
    assert np.std(extra) == pytest.approx(2**0.5 * 0.05, rel=0.1)  # two messages, exponential, independent
    assert len(set(extra)) == len(extra)
    assert seconds(of) == seconds(Network(**EVEN, jitter=0.05)) != seconds(Network(**{**EVEN, "seed": 2}, jitter=0.05))


def test_loss_costs_the_packets_sent_again_and_holds_tcp_below_its_bound():
    plain = {**EVEN, "examples_per_second": 1e9, "up_mbit": 0.1}
    train = 50 / 1e9
    # 0.1 Mbit/s is below the bound of 1460 bytes / 0.2 s * sqrt(1.5 / 0.01) = 0.715 Mbit/s: only more bytes
    up = seconds(Network(**plain, loss=0.01), down=0, up=125_000) - 2 * 0.1 - train
    assert up == pytest.approx(1.0 / 0.1 / 0.99)
    # 10 Mbit/s is above it
    down = seconds(Network(**plain, loss=0.01), down=1_250_000, up=0) - 2 * 0.1 - train
    assert down == pytest.approx(10 / 0.99 / (1460 * 8e-6 / 0.2 * math.sqrt(150)))
    near = Network(**{**plain, "latency": 0.0}, loss=0.01)  # no round trip, no bound
    assert seconds(near, down=1_250_000, up=0) - train == pytest.approx(1 / 0.99)


def test_energy_is_bytes_times_joules_those_sent_again_included():
    of = Network(**EVEN, up_joules_per_byte=2e-6, down_joules_per_byte=1e-6, loss=0.2)
    assert of.joules(0, up_bytes=1000, down_bytes=4000) == pytest.approx((2e-3 + 4e-3) / 0.8)
    ledger = Ledger()
    for entry in [(1, 1, "up", "update", 1000), (1, 1, "down", "model", 4000), (2, 9, "up", "control", 500)]:
        ledger.record(*entry)
    assert of.joules_of(ledger, 1) == pytest.approx(6e-3 / 0.8)
    assert of.joules_of(ledger) == pytest.approx(7e-3 / 0.8)
    assert of.joules_of(Ledger()) == of.joules_of(ledger, 3) == 0.0
    assert Network(**EVEN).joules_of(ledger) == 0.0


def test_profiles_are_what_their_sources_say():
    wifi, lte, slow, lora = (PROFILES[name] for name in ("wifi", "lte", "3g", "lora-like"))
    assert list(PROFILES) == ["wifi", "fibre", "lte", "3g", "lora-like"]
    # Huang et al. 2012: power while it transfers, in mW; a byte each 8 bits
    assert lte.up_joules_per_byte * lte.up_mbit / 8 * 1e9 == pytest.approx(438.39 * 6 + 1288.04)
    assert lte.down_joules_per_byte * lte.down_mbit / 8 * 1e9 == pytest.approx(51.97 * 13 + 1288.04)
    # Balasubramanian et al. 2009: 0.025 J a kB on 3G
    assert slow.up_joules_per_byte == pytest.approx(25e-6, rel=0.1)
    assert wifi.up_joules_per_byte < lte.up_joules_per_byte < slow.up_joules_per_byte < lora.up_joules_per_byte
    on_the_air = 7 * 250e3 / 2**7 * 4 / 5  # spreading factor 7, bandwidth, coding rate
    assert lora.up_mbit == lora.down_mbit == pytest.approx(0.1 * on_the_air / 1e6, rel=0.01)
    for name, profile in PROFILES.items():
        assert all(value > 0 for value in profile), name
        assert Network(profile=name, seed=1).profile(5) == profile


def test_given_figures_go_before_those_of_the_profile():
    of = Network(profile="lte", up_mbit=1.5, loss=0.0, seed=1)
    assert of.profile(0) == PROFILES["lte"]._replace(up_mbit=1.5, loss=0.0)
    assert Network(seed=1).profile(0) == DEFAULT
    assert Network(latency=0.5, seed=1).profile(0) == DEFAULT._replace(latency=0.5)


def test_clients_draw_their_profiles_by_the_shares():
    mixed = Network(profile={"lte": 0.7, "wifi": 0.3}, up_mbit=2.0, seed=1)
    drawn = [mixed.profile(client) for client in range(1000)]
    lte, wifi = (PROFILES[name]._replace(up_mbit=2.0) for name in ("lte", "wifi"))
    assert drawn.count(lte) == pytest.approx(700, abs=50) and drawn.count(lte) + drawn.count(wifi) == 1000
    other_order = Network(profile={"wifi": 0.3, "lte": 0.7}, up_mbit=2.0, seed=1)
    assert drawn == [other_order.profile(client) for client in range(1000)]
    assert drawn != [Network(profile={"lte": 0.7, "wifi": 0.3}, seed=2).profile(client) for client in range(1000)]
    # the spread of links is drawn apart from it
    assert mixed.link(4).examples_per_second == Network(seed=1).link(4).examples_per_second


def test_a_profile_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="no profile 'lora_like', expected wifi, .* did you mean 'lora-like'?"):
        Network(profile="lora_like", seed=1)
    with pytest.raises(ValueError, match="the shares sum to 0.9"):
        Network(profile={"lte": 0.5, "wifi": 0.4}, seed=1)


def test_the_clock_goes_forward_only():
    clock = VirtualClock()
    clock.advance_to(2.5)
    clock.advance_to(2.5)
    assert clock.now() == 2.5
    for time in (2.4, math.inf, math.nan):
        with pytest.raises(ValueError, match="only forward"):
            clock.advance_to(time)
    assert clock.now() == 2.5
