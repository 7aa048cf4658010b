"""HTTP endpoints of a service: /metrics for Prometheus, /health for people and load balancers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fedpress.simulations.deploy import settings
from fedpress.simulations.deploy.children import ServiceError

IDLE_SECONDS = 10.0
"""Time limit without a byte of a request."""


class ServiceFigure(NamedTuple):
    """A metric, with a value for each combination of labels.

    Attributes:
        name: Without the prefix `fedpress_`.
        help: Description for Prometheus.
        values: Values by their labels' values.
        labels: Names of the labels.
        total: Whether it is a counter, which never falls; else a gauge.
    """

    name: str
    help: str
    values: Mapping[tuple[str, ...], float]
    labels: tuple[str, ...] = ()
    total: bool = False


def figure(name: str, help: str, value: float | None, *, total: bool = False) -> ServiceFigure:
    """Return a metric without labels.

    Args:
        name: Without the prefix `fedpress_`.
        help: Description for Prometheus.
        value: None: there is none yet.
        total: Whether it is a counter.
    """
    return ServiceFigure(name, help, {} if value is None else {(): value}, (), total)


class _Collector:
    """Prometheus collector that calls for the figures at every scrape."""

    def __init__(self, figures: Callable[[], Iterable[ServiceFigure]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as metrics of Prometheus."""
        for figure in self._figures():
            kind = CounterMetricFamily if figure.total else GaugeMetricFamily
            family = kind(f"fedpress_{figure.name}", figure.help, labels=figure.labels)
            for labels, value in figure.values.items():
                family.add_metric(labels, value)
            yield family


@contextmanager
def served(
    address: str | None,
    figures: Callable[[], Iterable[ServiceFigure]],
    health: Callable[[], tuple[bool, Mapping[str, Any]]],
) -> Iterator[None]:
    """Serve both endpoints while the context lasts.

    Args:
        address: HOST:PORT; None: nothing is served.
        figures: Returns the metrics.
        health: Returns whether all is well (else the status is 503), and the facts to answer as JSON.

    Raises:
        ServiceError: The port is taken.
    """
    if address is None:
        yield
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_SECONDS  # a thread for each connection: one that says nothing must not keep it

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/health":
                well, facts = health()
                self._answer(200 if well else 503, "application/json", json.dumps(facts).encode() + b"\n")
            else:
                self._answer(404, "text/plain", b"/metrics or /health\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing: there is a scrape every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    host, port = settings.host_and_port(address)
    if ":" in host:
        Server.address_family = AF_INET6
    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise ServiceError(f"metrics: cannot listen on {address}: {error.strerror}; choose another port") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
