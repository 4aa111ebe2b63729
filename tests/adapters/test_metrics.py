"""The ledgers of open sinks as metrics."""

from __future__ import annotations

import json
import subprocess
import urllib.request

import pytest

from outfall import (
    BackgroundSink,
    CaptureSink,
    FanoutSink,
    FileSink,
    MissingDependencyError,
    NullSink,
    QueueListener,
    SpoolSink,
)
from outfall.adapters import metrics
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, until
from tests.sinks._wire import free_port

prometheus_client = pytest.importorskip("prometheus_client")


def _text():
    registry = prometheus_client.CollectorRegistry()
    metrics.register(registry)
    return prometheus_client.generate_latest(registry).decode()


def test_prometheus_gets_each_number_of_each_ledger(tmp_path):
    """Drops have their reason; a spool says what it has on disk and may have."""
    path = tmp_path / "m.jsonl"
    with FileSink(path, name="m1", level="info") as sink, SpoolSink(NullSink(), tmp_path / "s", name="m2") as spool:
        sink.handle({"event": "a", "level": "info"})
        sink.handle({"event": "b", "level": "debug"})
        sink._count_dropped("error")
        spool.handle({"event": "a", "level": "info"})
        text = _text()
    place = f'{{sink="m1",where="{sink._where()}"'
    assert f"outfall_events_accepted_total{place}}} 2.0" in text
    assert f"outfall_events_delivered_total{place}}} 1.0" in text
    assert f"outfall_events_filtered_total{place}}} 1.0" in text
    assert f'outfall_events_dropped_total{{reason="error",sink="m1",where="{sink._where()}"}} 1.0' in text
    assert f"outfall_last_delivery_timestamp_seconds{place}}} 1" in text
    assert 'outfall_spool_max_bytes{sink="m2"' in text
    assert 'outfall_spool_used_bytes{sink="m2"' in text


def test_where_is_the_target_of_the_sink_itself(tmp_path):
    """So that of two sinks of one class behind a router or a listener the one that is away can be seen."""
    import queue

    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    events = [{"event": "a", "level": level} for level in ("info", "error")]
    all_of_it, errors = (
        FileSink(tmp_path / "all", name="file"),
        FileSink(tmp_path / "errors", name="file", level="error"),
    )
    with (
        FanoutSink(all_of_it, errors, name="both") as both,
        QueueListener(waiting, all_of_it, errors, name="reader", respect_sink_level=True) as listener,
    ):
        for event in events:
            both.handle(event)
            waiting.put(json.dumps(event).encode())
        assert listener.flush(PATIENCE_SECONDS)
        found = metrics.SinkMetrics().read()["delivered"]
    for owner in ("both", "reader"):
        assert found[f"{owner}/file", all_of_it._where(), ""] == 2
        assert found[f"{owner}/file", errors._where(), ""] == 1


def test_children_of_a_router_and_sinks_of_a_listener_have_their_own():
    """Their names follow their owner's; what a wrapper counts is not counted twice."""
    import queue

    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    waiting.put(b'{"event":"a"}')
    with (
        BackgroundSink(NullSink(name="inner"), name="outer") as outer,
        FanoutSink(CaptureSink(name="x"), CaptureSink(name="y"), name="fan") as fan,
        QueueListener(waiting, NullSink(name="z"), name="queue") as listener,
    ):
        outer.handle({"event": "a"})
        fan.handle({"event": "a"})
        assert listener.flush(30)
        names = {sink for sink, _, _ in metrics.SinkMetrics().read()["delivered"]}
    assert {"outer", "fan", "fan/x", "fan/y", "queue", "queue/z"} <= names
    assert not {"inner", "outer/inner"} & names


def test_two_sinks_of_one_name_and_place_are_added_up():
    """Labels that come twice would make Prometheus refuse all."""
    with NullSink(name="twin") as one, NullSink(name="twin") as other:
        one.handle({"event": "a"})
        other.handle({"event": "a"})
        assert metrics.SinkMetrics().read()["delivered"]["twin", "", ""] == 2
    assert ("twin", "", "") not in metrics.SinkMetrics().read()["delivered"]


def test_the_last_delivery_is_the_last_reading_that_saw_more(monkeypatch):
    """It stays where nothing is delivered."""
    made = metrics.SinkMetrics()
    moments = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(metrics.time, "time", lambda: next(moments))
    with NullSink(name="last") as sink:
        seen = []
        for number in (1, 0, 1):
            for _ in range(number):
                sink._ledger.delivered += 1
            seen.append(made.read()["last"]["last", "", ""])
    assert seen == [100.0, 100.0, 300.0]


def test_opentelemetry_observes_the_same_numbers():
    """Counters and gauges by the names of its conventions."""
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    metrics.observe(provider)
    with NullSink(name="otel") as sink:
        sink.handle({"event": "a"})
        found = json.loads(reader.get_metrics_data().to_json())
    provider.shutdown()
    every = found["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    points = {
        metric["name"]: point["value"]
        for metric in every
        for point in metric["data"]["data_points"]
        if point["attributes"]["sink"] == "otel"
    }
    assert points["outfall.events.delivered"] == 1
    assert points["outfall.events.pending"] == 0


def test_opentelemetry_reads_each_ledger_once_for_a_collection():
    """All instruments observe the numbers of one moment, and each collection those of its own."""
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    readings = []

    class Watched(NullSink):
        def stats(self):
            readings.append(super().stats())
            return readings[-1]

    metrics.observe(provider)
    with Watched(name="watched") as sink:
        for collection in (1, 2):
            sink.handle({"event": "a"})
            found = json.loads(reader.get_metrics_data().to_json())
            assert len(readings) == collection
            points = {
                metric["name"]: point["value"]
                for metric in found["resource_metrics"][0]["scope_metrics"][0]["metrics"]
                for point in metric["data"]["data_points"]
                if point["attributes"]["sink"] == "watched"
            }
            assert points["outfall.events.accepted"] == points["outfall.events.delivered"] == collection
    provider.shutdown()


def test_a_missing_package_names_its_extra(monkeypatch):
    """Nothing else of the module needs it."""
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[prometheus\]"):
        metrics.register()
    with pytest.raises(MissingDependencyError, match=r"outfall\[otel\]"):
        metrics.observe()


@pytest.mark.slow
@pytest.mark.service
def test_a_real_prometheus_scrapes_them(require_service, tmp_path):
    """What it answers to a query is what the ledger says."""
    program = require_service("prometheus")
    registry = prometheus_client.CollectorRegistry()
    metrics.register(registry)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['127.0.0.1:{server.server_port}']}}]}}]\n"
    )
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    query = f"http://127.0.0.1:{port}/api/v1/query?query=outfall_events_delivered_total{{sink=%22scraped%22}}"

    def answer():
        try:
            with urllib.request.urlopen(query, timeout=PATIENCE_SECONDS) as reply:
                found = json.load(reply)["data"]["result"]
        except OSError:
            return None
        return found and found[0]["value"][1]

    with NullSink(name="scraped") as sink, (tmp_path / "log").open("wb") as log:
        sink.handle({"event": "a"})
        sink.handle({"event": "b"})
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=tmp_path)
        try:
            until(lambda: process.poll() is not None or answer() == "2")
            assert process.poll() is None, (tmp_path / "log").read_text()
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.mark.service
def test_the_alerts_of_the_documentation_are_rules_of_prometheus(require_service, tmp_path):
    """Its own tool finds four rules, and nothing wrong with them."""
    page = (ROOT / "docs" / "how-to" / "metrics.md").read_text(encoding="utf-8")
    (tmp_path / "rules.yml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    command = [require_service("promtool"), "check", "rules", str(tmp_path / "rules.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 rules found" in result.stdout
