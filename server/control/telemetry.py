"""Numbers for Prometheus: calls, bytes, nodes and runs; never a label that stands for a person.

Budgets appear as runs' own figures (the worst subject of a run), with delta, unit and relation
beside epsilon. Which node called how often is not counted anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.control.runstates import RunState, RunStates
from server.control.traces import Traces
from server.fleetdb import FleetDatabase

# A node that called within this time counts as seen.
SEEN_SECONDS = 300.0
_RUNS = 50
_BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Telemetry:
    """Counts and traces calls; each service has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "fedslm_control"
        self._traces = Traces()
        self._calls = Counter(
            f"{name}_calls",
            "Calls by method and status.",
            ["method", "code"],
            registry=self.registry,
        )
        self._received = Counter(
            f"{name}_received_bytes", "Bytes of requests.", ["method"], registry=self.registry
        )
        self._sent = Counter(
            f"{name}_sent_bytes", "Bytes of answers.", ["method"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{name}_seconds",
            "Duration of calls.",
            ["method"],
            buckets=_BOUNDS,
            registry=self.registry,
        )

    def called(self, method: str, code: str, *, seconds: float, received: int, sent: int) -> None:
        """Count one finished call; ``method`` is one that is served, so labels stay few."""
        self._calls.labels(method, code).inc()
        self._received.labels(method).inc(received)
        self._sent.labels(method).inc(sent)
        self._seconds.labels(method).observe(seconds)
        self._traces.called(method, code, seconds=seconds)

    def observe(self, fleet: FleetDatabase, runs: RunStates) -> None:
        """Also show the fleet and the runs, read anew at every scrape."""
        self.registry.register(FleetCollector(fleet, runs))

    def serve(self, port: int) -> tuple[int, Callable[[], None]]:
        """Serve the numbers over HTTP, on loopback alone.

        Args:
            port: 0 takes a free one.

        Returns:
            The port, and what stops the server.
        """
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        return int(server.server_port), stop


class FleetCollector(Collector):
    """Reads fleet and runs when Prometheus asks.

    Args:
        fleet: the fleet.
        runs: the runs.
        clock: Unix seconds.
    """

    def __init__(
        self, fleet: FleetDatabase, runs: RunStates, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._fleet = fleet
        self._runs = runs
        self._clock = clock

    def describe(self) -> list[Metric]:
        """Return nothing: what there is depends on the databases."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield gauges of nodes by state and of the newest runs."""
        yield self._nodes()
        yield from run_metrics(self._runs.newest(_RUNS))

    def _nodes(self) -> Metric:
        """Count nodes by state."""
        now = self._clock()
        nodes = [node for node in self._fleet.nodes() if node.role == "node"]
        inside = [node for node in nodes if node.revoked_at is None]
        seen = [n for n in inside if n.last_seen is not None and now - n.last_seen <= SEEN_SECONDS]
        family = GaugeMetricFamily("fedslm_nodes", "Nodes of the fleet.", labels=["state"])
        family.add_metric(["enrolled"], len(inside))
        family.add_metric(["seen"], len(seen))
        family.add_metric(["revoked"], len(nodes) - len(inside))
        return family


def run_metrics(runs: list[RunState]) -> Iterator[Metric]:
    """Yield what is known about runs, each by its name."""
    rounds = CounterMetricFamily("fedslm_run_rounds", "Finished rounds.", labels=["run"])
    planned = GaugeMetricFamily("fedslm_run_rounds_planned", "Planned rounds.", labels=["run"])
    terms = ["run", "delta", "unit", "relation"]
    spent = GaugeMetricFamily(
        "fedslm_run_epsilon", "Epsilon of the run's worst subject so far.", labels=terms
    )
    cap = GaugeMetricFamily("fedslm_run_epsilon_cap", "Cap of that epsilon.", labels=terms)
    releases = GaugeMetricFamily(
        "fedslm_run_releases", "Noised releases about that subject.", labels=["run"]
    )
    for run in runs:
        rounds.add_metric([run.name], run.rounds_done)
        planned.add_metric([run.name], run.rounds_planned)
        if run.delta is None:
            continue
        labels = [run.name, repr(run.delta), run.unit, run.relation]
        if run.epsilon is not None:
            spent.add_metric(labels, run.epsilon)
        if run.cap is not None:
            cap.add_metric(labels, run.cap)
        if run.releases is not None:
            releases.add_metric([run.name], run.releases)
    yield from (rounds, planned, spent, cap, releases)
