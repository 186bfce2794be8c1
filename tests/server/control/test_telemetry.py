from __future__ import annotations

import json
import logging
import stat
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from server.control import logs
from server.control.runstates import RunStates
from server.control.telemetry import FleetCollector, Telemetry
from server.control.traces import Traces
from server.fleetdb import FleetDatabase
from tests.server.control.service import identity, make_home
from tests.server.control.test_runstates import add_run

METHOD = "fedslm.control.v1.Budget/GetOwn"


def test_calls_are_counted_by_method_and_status() -> None:
    telemetry = Telemetry()
    for code in ("OK", "OK", "PERMISSION_DENIED"):
        telemetry.called(METHOD, code, seconds=0.01, received=3, sent=5)
    read = telemetry.registry.get_sample_value
    labels = {"method": METHOD}
    assert read("fedslm_control_calls_total", {**labels, "code": "OK"}) == 2
    assert read("fedslm_control_calls_total", {**labels, "code": "PERMISSION_DENIED"}) == 1
    assert read("fedslm_control_received_bytes_total", labels) == 9
    assert read("fedslm_control_sent_bytes_total", labels) == 15
    assert read("fedslm_control_seconds_count", labels) == 3


def test_numbers_are_served_on_loopback_until_stopped() -> None:
    telemetry = Telemetry()
    telemetry.called(METHOD, "OK", seconds=0.01, received=3, sent=5)
    port, stop = telemetry.serve(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    finally:
        stop()
    assert "fedslm_control_calls" in {family.name for family in families}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_nodes_by_state(tmp_path: Path) -> None:
    home = make_home(tmp_path / "server")
    for name in ("a", "b", "c"):
        identity(home, name, address="localhost:1")
    identity(home, "vera", "viewer", address="localhost:1")
    with FleetDatabase(home.fleet_database) as fleet:
        entry = fleet.node_by_name("a")
        assert entry is not None
        fleet.seen(entry.public_key, now=1000.0)
        fleet.revoke("c", "lost")
        samples = {}
        for now in (1100.0, 1400.0):
            collector = FleetCollector(fleet, RunStates(home), clock=partial(float, now))
            (nodes, *_) = collector.collect()
            samples[now] = {s.labels["state"]: s.value for s in nodes.samples}
    assert samples[1100.0] == {"enrolled": 2, "seen": 1, "revoked": 1}
    assert samples[1400.0]["seen"] == 0


def test_epsilon_is_never_without_delta_unit_and_relation(tmp_path: Path) -> None:
    home = make_home(tmp_path / "server")
    add_run(home, "private", 2)
    folder = add_run(home, "open", 1)
    (folder / "run.json").write_text(json.dumps({"plan": {"mode": "none", "rounds": 2}}))
    with FleetDatabase(home.fleet_database) as fleet:
        families = {f.name: f for f in FleetCollector(fleet, RunStates(home)).collect()}
    (sample,) = families["fedslm_run_epsilon"].samples
    terms = {"delta": "0.0001", "unit": "client", "relation": "add-or-remove-one"}
    assert (sample.labels, sample.value) == ({"run": "private", **terms}, 1.0)
    assert families["fedslm_run_epsilon_cap"].samples[0].value == 8.0
    assert {s.labels["run"]: s.value for s in families["fedslm_run_rounds"].samples} == {
        "private": 2,
        "open": 1,
    }


@pytest.fixture(name="spans")
def _spans() -> Iterator[InMemorySpanExporter]:
    """Tracers of one provider; OpenTelemetry takes one for each process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer", provider.get_tracer)
        yield exporter
    provider.shutdown()


def test_a_call_is_a_span_that_names_nobody(spans: InMemorySpanExporter) -> None:
    traces = Traces()
    traces.called(METHOD, "OK", seconds=0.5)
    traces.called(METHOD, "INTERNAL", seconds=0.0)
    good, bad = spans.get_finished_spans()
    assert good.name == METHOD
    assert good.start_time is not None
    assert good.end_time is not None
    assert good.end_time - good.start_time == 500_000_000
    assert dict(good.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "fedslm.control.v1.Budget",
        "rpc.method": "GetOwn",
        "rpc.grpc.status": "OK",
    }
    assert (good.status.is_ok, bad.status.is_ok) == (True, False)


def test_without_opentelemetry_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    Traces().called(METHOD, "OK", seconds=1)


def test_a_failure_is_logged_without_its_words(tmp_path: Path) -> None:
    handler = logs.write_to(tmp_path)
    try:
        try:
            msg = "the text of somebody's record"
            raise ValueError(msg)
        except ValueError as error:
            logs.failure(METHOD, error)
    finally:
        logs.stop(handler)
    path = tmp_path / "control.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "somebody" not in path.read_text()
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (line["event"], line["level"], line["error"]) == ("failure", "error", "ValueError")
    assert line["where"][-1].startswith("test_telemetry.py:")
    assert handler not in logging.getLogger(logs.LOGGER).handlers
