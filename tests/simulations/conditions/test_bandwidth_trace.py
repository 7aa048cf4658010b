"""Rates over time: a transfer ends when their integral is what is to be sent; a bad file is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpress.simulations.conditions import bandwidth_trace
from fedpress.simulations.conditions.bandwidth_trace import Course, TraceError
from fedpress.simulations.conditions.network import PROFILES, Network, NetworkSettings

HEADER = "client,seconds,up_mbit,down_mbit"


def network_of(*, seed: int = 1, clients: int = 0, trace: Path, **given: Any) -> Network:
    return Network(NetworkSettings(trace=str(trace), **given), seed=seed, clients=clients)


def file_of(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def seconds(
    of: Network, client: int = 3, start: float = 0.0, down: int = 500_000, up: int = 90_000, examples: int = 50
):
    return of.seconds(client=client, round=1, down_bytes=down, examples=examples, up_bytes=up, start=start)


@st.composite
def courses(draw):
    durations = np.array(draw(st.lists(st.floats(0.1, 100), min_size=2, max_size=8)))
    rates = np.array(
        draw(st.lists(st.just(0.0) | st.floats(0.01, 50), min_size=len(durations), max_size=len(durations)))
    )
    rates[draw(st.integers(0, len(rates) - 1))] = 1.0
    begins = np.concatenate([[0.0], np.cumsum(durations)[:-1]])
    return Course(begins, durations, rates, rates, None)


def sent(course: Course, start: float, seconds: float) -> float:
    """Megabits that go through, row by row: the plain way."""
    total, time, end = 0.0, start, start + seconds
    while time < end:
        row = course.row(time)
        turn = time - time % course.period + course.begins[row] + course.durations[row]
        step = min(turn, end)
        if step <= time:  # a boundary, missed by rounding
            step = min(float(np.nextafter(time, np.inf)), end)
        total += (step - time) * course.up_mbit[row]
        time = step
    return total


@given(courses(), st.floats(0, 1000), st.floats(1e-3, 500))
def test_a_transfer_ends_when_all_went_through(course, start, megabits):
    took = course.seconds(start, megabits, course.up_mbit)
    assert sent(course, start, took) == pytest.approx(megabits, rel=1e-6, abs=1e-6)
    assert sent(course, start, 0.999 * took) < megabits  # and no earlier: never at the end of a time without a link
    assert course.seconds(start, 0.0, course.up_mbit) == 0.0


@given(courses(), st.floats(0, 1000), st.floats(1e-3, 500), st.floats(1e-3, 500))
def test_transfers_one_after_the_other_take_as_long_as_one(course, start, first, second):
    rates = course.up_mbit
    one = course.seconds(start, first, rates)
    # Where the last bit goes as the rate falls to nothing, rounding decides whether it waits until the link is back.
    least, most = (course.seconds(start, (first + second) * factor, rates) for factor in (1 - 1e-9, 1 + 1e-9))
    both = one + course.seconds(start + one, second, rates)
    assert least - 1e-6 <= both * (1 + 1e-6) and both * (1 - 1e-6) <= most + 1e-6
    assert one <= most + 1e-9


@pytest.mark.parametrize(
    "rows", [["*,0,6,13"], ["*,0,6,13", "*,7,6,13", "*,9,6,13"], ["*,5,6,13", "3,0,6,13", "3,1,6,13"]]
)
@pytest.mark.parametrize("given", [{}, {"packet_loss": 0.05, "rate_sigma": 0.0}, {"jitter": 0.0}])
def test_constant_rates_are_the_constant_network(tmp_path, rows, given):
    """Those of `lte` here; with the same spread, jitter, loss and energy."""
    plain = Network(NetworkSettings(profile="lte", **given), seed=1)
    traced = network_of(profile="lte", seed=1, trace=file_of(tmp_path, *rows), clients=9, **given)
    for client in range(6):
        for start in (0.0, 6.5, 1234.5):
            assert seconds(traced, client, start) == pytest.approx(seconds(plain, client), rel=1e-9)
    assert traced.joules(3, up_bytes=5, down_bytes=7) == plain.joules(3, up_bytes=5, down_bytes=7)


def test_a_transfer_waits_for_the_link_and_the_trace_begins_again(tmp_path):
    path = file_of(tmp_path, "*,0,1,8", "*,10,0,8", "*,30,2,8")  # the last row lasts 20 s, as the one before it
    of = network_of(trace=path, rate_sigma=0.0, latency=0.0, seed=1)
    assert bandwidth_trace.load(path).of(0).period == 50
    assert seconds(of, down=8_000_000, up=0, examples=0) == pytest.approx(8.0)
    assert seconds(of, down=0, up=1_250_000, examples=0) == pytest.approx(10.0)  # 10 Mbit, and not after the gap
    assert seconds(of, down=0, up=1_500_000, examples=0) == pytest.approx(31.0)
    assert seconds(of, down=8_000_000, up=1_250_000, examples=0) == pytest.approx(
        8 + 2 + 20 + 4
    )  # the upload begins at 8 s
    assert seconds(of, start=49, down=0, up=1_500_000, examples=0) == pytest.approx(1 + 10)
    assert seconds(of, start=100_049, down=0, up=6_500_000 + 1_500_000, examples=0) == pytest.approx(1 + 50 + 31)


def test_the_latency_of_a_trace_is_that_of_the_moment_and_bounds_tcp(tmp_path):
    path = file_of(tmp_path, "*,0,8,8,0.5", "*,10,8,8,0.1", header=f"{HEADER},latency")
    of = network_of(
        trace=path, profile="lte", jitter=0.0, rate_sigma=0.0, packet_loss=0.0, examples_per_second=10.0, seed=1
    )
    assert seconds(of, down=0, up=0) == pytest.approx(0.5 + 5 + 0.5)
    assert seconds(of, start=6, down=0, up=0) == pytest.approx(0.5 + 5 + 0.1)
    lossy = network_of(trace=path, jitter=0.0, rate_sigma=0.0, packet_loss=0.01, examples_per_second=1e12, seed=1)
    bound = 1460 * 8e-6 / 0.2 * 150**0.5
    assert seconds(lossy, start=10, down=50_000, up=0) == pytest.approx(0.1 + 0.4 / 0.99 / bound + 0.1)


def test_rows_of_a_client_go_before_those_of_everybody(tmp_path):
    path = file_of(tmp_path, "*,0,1,1", "2,100,4,4", "2,200,4,4", "")
    trace = bandwidth_trace.load(path)
    assert trace.of(2).up_mbit.tolist() == [4.0, 4.0] and trace.of(2).begins.tolist() == [0.0, 100.0]
    assert trace.of(0).up_mbit.tolist() == [1.0]
    own = file_of(tmp_path, "0,0,1,1", "1,0,1,1")
    network_of(trace=own, clients=2, seed=1)
    with pytest.raises(TraceError, match="no rows for client 2; add some, or rows for \\*"):
        network_of(trace=own, clients=3, seed=1)


def test_columns_may_come_in_any_order(tmp_path):
    path = file_of(tmp_path, "0.2, 3, 2, *, 0", header="latency, down_mbit, up_mbit, client, seconds")
    course = bandwidth_trace.load(path).of(7)
    assert (course.up_mbit[0], course.down_mbit[0], course.latency[0]) == (2.0, 3.0, 0.2)


@pytest.mark.parametrize(
    ("rows", "header", "expected"),
    [
        ([], "", "lacks client, seconds, up_mbit, down_mbit; expected client, .* latency, found nothing"),
        (["*,0,1"], "client,seconds,up_mbit", "lacks down_mbit; expected .* found client, seconds, up_mbit"),
        (["*,0,1,1,1"], f"{HEADER},latncy", "unknown column 'latncy'; expected .* did you mean 'latency'?"),
        (["*,0,1,1,1"], f"{HEADER},seconds", "has the column seconds 2 times"),
        ([], HEADER, "has a header and no rows"),
        (["*,0,1,1", "*,1,x,1"], HEADER, "line 3: up_mbit 'x', expected a number that is not negative"),
        (["*,0,1,-1"], HEADER, "line 2: down_mbit '-1', expected"),
        (["*,0,1,nan"], HEADER, "line 2: down_mbit 'nan', expected"),
        (["*,0,inf,1"], HEADER, "line 2: up_mbit 'inf', expected"),
        (["*,0,1"], HEADER, "line 2: 3 values, expected 4: client,seconds,up_mbit,down_mbit"),
        (["all,0,1,1"], HEADER, "line 2: client 'all', expected a client's index, from 0, or \\* for all others"),
        (["*,0,1,1", "", "4,9,1,1", "*,0,1,1"], HEADER, "line 5: seconds 0 after 0; the times of client \\* must rise"),
        (["*,0,0,1", "*,4,0,1"], HEADER, "up_mbit of client \\* is 0 in every row, so no transfer would ever end"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, rows, header, expected):
    path = file_of(tmp_path, *rows, header=header)
    with pytest.raises(TraceError, match=expected) as caught:
        bandwidth_trace.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(TraceError, match="cannot read .*absent.csv: No such file"):
        bandwidth_trace.load(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(TraceError, match="cannot read .*binary.csv: it is not text in UTF-8"):
        bandwidth_trace.load(tmp_path / "binary.csv")


def test_a_mixed_fleet_on_a_trace_keeps_its_profiles_energy(tmp_path):
    mixed = network_of(profile={"3g": 0.5, "wifi": 0.5}, trace=file_of(tmp_path, "*,0,1,1"), seed=1)
    assert {mixed.joules(client, up_bytes=1, down_bytes=0) for client in range(30)} == {
        PROFILES[name].up_joules_per_byte / (1 - PROFILES[name].packet_loss) for name in ("3g", "wifi")
    }
