"""The measurement of the hub: real downloads at once, and figures that can be true."""

import pytest

pytest.importorskip("grpc_health")

from fedpress.simulations.benchmarks import hub  # noqa: E402


@pytest.mark.slow
def test_many_downloads_at_once_without_an_error_and_without_their_bytes_in_memory() -> None:
    said: list[str] = []
    figures = hub.run(200, 2_000_000, said.append)
    few, many = figures.loads
    assert (few.downloads, few.errors, many.downloads, many.errors) == (10, 0, 200, 0)
    assert few.idle_bytes <= few.peak_bytes and many.cpu_seconds > 0 and figures.read_megabytes_per_second > 0
    assert many.peak_bytes - few.peak_bytes < 200 * 2_000_000 / 4  # far from what was sent
    assert len(said) == 3 and [len(row) for row in hub.rows(figures)] == [len(hub.COLUMNS)] * 2
    assert "memory of one more download" in dict(hub.facts(figures))
    assert hub.as_json(figures)["loads"][1]["downloads"] == 200
