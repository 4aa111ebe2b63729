"""The factories of collectors: each beside a server that checks what the published API says."""

from __future__ import annotations

import json
import socket
import time

import pytest
import trustme

import outfall
from outfall import BackgroundSink, CaptureSink, DatadogLogs, HTTPSink
from outfall.adapters.collectors import (
    datadog_sink,
    elasticsearch_sink,
    gelf_sink,
    loki_sink,
    opensearch_sink,
    otlp_sink,
    splunk_sink,
)
from outfall.adapters.collectors.factory import with_path, with_query
from outfall.sinks.core import flock
from outfall.sinks.delivery.delivery import RetryPolicy
from outfall.sinks.spool.sink import SpoolSink
from outfall.sinks.testing import assert_balanced
from tests.adapters._collectors import (
    DatadogCollector,
    ElasticsearchCollector,
    GELFCollector,
    LokiCollector,
    OTLPCollector,
    SplunkCollector,
)
from tests.sinks._http import Answer, Server, server_context
from tests.sinks._processes import until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EVENT = {"event": "stock is low", "level": "warning", "trace_id": TRACE, "span_id": SPAN, "left": 3}
#: What was refused for a while is tried again at once, and not told on stderr.
AT_ONCE = {
    "retry": RetryPolicy(start_seconds=0, pause_start_seconds=0, pause_max_seconds=0),
    "on_error": lambda failure: None,
}


def ship(sink, *events):
    """Give *events* to *sink* and close it; return its ledger."""
    for event in events:
        sink.handle(event)
    assert sink.close(60), sink.stats()
    stats = sink.stats()
    assert_balanced(stats)
    return stats


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Take out what the machine may say of collectors."""
    import os

    for name in list(os.environ):
        if name.startswith(("OTEL_", "DD_")):
            monkeypatch.delenv(name)


# -- OpenTelemetry


def test_otlp_sink_delivers():
    """All events arrive, in order, with the resource that was given."""
    with OTLPCollector() as collector:
        sink = otlp_sink(collector.url, resource={"service.name": "shop"})
        assert isinstance(sink, BackgroundSink)
        stats = ship(sink, *({**EVENT, "number": number} for number in range(1_200)))
        assert stats.delivered == 1_200
        assert stats.name == "otlp"
        assert not collector.refusals
        numbers = [record.attributes[-1].value.int_value for _, record in collector.received]
        assert numbers == list(range(1_200))
        [resource] = collector.resources
        assert {each.key: each.value.string_value for each in resource.attributes} == {"service.name": "shop"}


@pytest.mark.parametrize("path", ["", "/", "/v1/logs", "/v1/logs/"])
def test_otlp_sink_adds_the_path(path):
    """Unless it is there."""
    with OTLPCollector() as collector:
        assert ship(otlp_sink(collector.url + path), EVENT).delivered == 1


def test_otlp_sink_reads_the_environment(monkeypatch):
    """Endpoint, headers, compression and resource, percent-encoded where they may be."""
    with OTLPCollector(headers={"x-scope": "a,b", "x-more": "é"}) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url + "/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=a%2Cb, x%2Dmore=%C3%A9 ,,")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20000")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,host.name=web%201")
        ship(otlp_sink(resource={"pid": 5}), EVENT)
        assert collector.requests[0].headers["content-encoding"] == "gzip"
        [resource] = collector.resources
        found = {each.key: each.value.string_value or each.value.int_value for each in resource.attributes}
        assert found == {"service.name": "shop", "host.name": "web 1", "pid": 5}


def test_otlp_variables_for_logs_win(monkeypatch):
    """An endpoint for logs is taken as it is; what is given here wins over all."""
    with OTLPCollector(headers={"x-a": "logs", "x-b": "here"}) as collector:
        collector.path = "/own/path"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", collector.url + "/own/path")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-a=all")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-a=logs,x-b=environment")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none")
        ship(otlp_sink(headers={"x-b": "here"}), EVENT)
        assert "content-encoding" not in collector.requests[0].headers
        collector.path = "/v1/logs"
        ship(otlp_sink(collector.url, headers={"x-b": "here"}, compression="gzip"), EVENT)
        assert collector.requests[1].headers["content-encoding"] == "gzip"


def test_otlp_defaults(monkeypatch):
    """The collector's own port on this machine, a service that is unknown; empty variables are unset."""
    for name in ("ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "PROTOCOL"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "")
    target = otlp_sink()._target
    assert target.url == "http://localhost:4318/v1/logs"
    assert target.timeout == (3.05, 10)
    assert target.body.resource["service.name"].startswith("unknown_service:python")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "")
    assert otlp_sink()._target.url == "http://collector:4318/v1/logs"


def test_otlp_timeout_is_in_milliseconds(monkeypatch):
    """As the specification has it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5000")
    assert otlp_sink()._target.timeout == (3.05, 5)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "500")
    assert otlp_sink()._target.timeout == (0.5, 0.5)
    assert otlp_sink(timeout=7)._target.timeout == (7, 7)


@pytest.mark.parametrize("apart", [False, True])
def test_otlp_certificates(monkeypatch, tmp_path, apart):
    """The server's authority, and the client's certificate, with its key in it or in a file of its own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    client = authority.issue_cert("client.example.org")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both")
    client.private_key_pem.write_to_path(tmp_path / "key")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(tmp_path / ("client" if apart else "both")))
    if apart:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(tmp_path / "key"))
    with OTLPCollector(context=server_context(authority.issue_cert("127.0.0.1"), authority)) as collector:
        assert ship(otlp_sink(collector.url), EVENT).delivered == 1
        assert collector.requests[0].certificate


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "=secret"),
        ("OTEL_RESOURCE_ATTRIBUTES", "secret"),
    ],
)
def test_otlp_variables_that_say_nothing(monkeypatch, name, value):
    """Are misconfiguration; what may be a secret is not repeated."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        otlp_sink()
    assert "secret" not in str(caught.value)


def test_otlp_endpoint_for_grpc(monkeypatch):
    """Is none for HTTP, unless another one is given."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert otlp_sink()._target.url == "http://localhost:4318/v1/logs"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_PROTOCOL='grpc'"):
        otlp_sink()
    assert otlp_sink("http://localhost:4318")._target.url == "http://localhost:4318/v1/logs"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf")
    assert otlp_sink()._target.url == "http://localhost:4317/v1/logs"


def test_otlp_partial_success_is_in_the_ledger():
    """What the collector says it refused is not delivered, and nothing is sent twice."""
    with OTLPCollector() as collector:
        collector.rejects = 2
        failures = []
        stats = ship(otlp_sink(collector.url, on_error=failures.append), *[EVENT] * 5)
        assert (stats.delivered, stats.dropped) == (3, {"rejected": 2})
        assert len(collector.requests) == 1
        assert [failure.events for failure in failures] == [2]


# -- Loki


def test_loki_sink_delivers():
    """With labels, the tenant, and times that are the events' own."""
    with LokiCollector(headers={"x-scope-orgid": "team-a"}) as collector:
        sink = loki_sink(collector.url, {"app": "shop"}, label_fields=["level", "logger"], tenant="team-a")
        began = time.time()
        stats = ship(sink, EVENT, {"event": "dated", "timestamp": 5, "logger": "x"})
        assert (stats.delivered, stats.name) == (2, "loki")
        assert not collector.refusals
        (first, *_), (second, when, *_) = sorted(collector.received, key=lambda entry: -entry[1])
        assert first == {"app": "shop", "level": "warning"}
        assert (second, when) == ({"app": "shop", "level": "info", "logger": "x"}, 5 * 10**9)
        assert began - 1 < collector.received[0][1] / 1e9 < time.time() + 1


@pytest.mark.parametrize(
    "said",
    [
        "entry for stream '{app=\"shop\"}' has timestamp too old: 2020-01-01T00:00:00Z, oldest acceptable …",
        "entry too far behind, entry timestamp is: 2020-01-01T00:00:00Z, oldest acceptable timestamp is: …",
        "max entry size '262144' bytes exceeded for stream '{app=\"shop\"}' while adding an entry with length …",
    ],
)
def test_lines_that_loki_will_never_take_hold_up_no_other(said):
    """After a long outage all that waits in front may be too old: Loki takes no line of such a batch."""
    dead = CaptureSink()

    def answer(request):
        old = b"old" in request.body
        return Answer(400, said, {"Content-Type": "text/plain; charset=utf-8"}) if old else 204

    with Server(answer) as server:
        sink = loki_sink(f"http://127.0.0.1:{server.port}", {"app": "shop"}, dead_letter=dead, batch_size=3, **AT_ONCE)
        stats = ship(sink, *[{"event": "old"}] * 3, {"event": "new"})
    assert (stats.delivered, stats.dead_lettered) == (1, 3)
    assert [event["event"] for event in dead.events] == ["old"] * 3


def test_loki_that_takes_nothing_gets_it_later():
    """Status 260 is no success: the events are kept, and come when ingestion goes on."""
    with LokiCollector() as collector:
        collector.blocked = True
        sink = loki_sink(collector.url, {"app": "shop"}, **AT_ONCE)
        sink.handle(EVENT)
        collector.wait(2)
        collector.blocked = False
        stats = ship(sink)
        assert (stats.delivered, len(collector.received)) == (1, 1)
        assert "260" in stats.last_error


# -- Elasticsearch


def test_elasticsearch_sink_delivers():
    """To the data stream's _bulk, with the key, and without asking for reasons that repeat values."""
    with ElasticsearchCollector(headers={"authorization": "ApiKey abc=="}) as collector:
        stats = ship(elasticsearch_sink(collector.url, "logs-shop-default", api_key="abc=="), EVENT, EVENT)
        assert (stats.delivered, stats.name) == (2, "elasticsearch")
        assert not collector.refusals
        assert [document["message"] for document in collector.received] == ["stock is low"] * 2
        assert collector.requests[0].query == {"filter_path": ["errors,items.*.status,items.*.error.type"]}


def test_elasticsearch_documents_have_each_its_own_fate():
    """What is too much is tried again, what is refused goes to the dead letters, all else is there once."""
    with ElasticsearchCollector() as collector, CaptureSink() as dead:
        collector.statuses = [201, 429, 400, 503, 201, 500]
        sink = elasticsearch_sink(collector.url, "logs-shop-default", **AT_ONCE, dead_letter=dead)
        stats = ship(sink, *({"event": str(number)} for number in range(5)))
        assert (stats.delivered, stats.dead_lettered, stats.dropped) == (4, 1, {})
        assert sorted(document["message"] for document in collector.received) == ["0", "1", "3", "4"]
        assert [event["event"] for event in dead.events] == ["2"]
        assert stats.last_error is not None


def test_elasticsearch_long_answers_are_read_whole():
    """However many documents are refused, each is known."""
    with ElasticsearchCollector() as collector:
        collector.statuses = [400] * 1_500
        sink = elasticsearch_sink(collector.url, "logs-shop-default", batch_size=1_500, **AT_ONCE)
        stats = ship(sink, *[EVENT] * 1_501)
        assert (stats.delivered, stats.dropped, stats.retried) == (1, {"rejected": 1_500}, 0)


def test_elasticsearch_answer_that_was_lost_puts_nothing_in_twice():
    """The batch that is sent again has the same ids, and what is there already was delivered."""
    with ElasticsearchCollector() as collector:

        def lose(request):
            collector.take(request)
            return Answer(reset=True)

        collector.answers.append(lose)
        sink = elasticsearch_sink(collector.url, "logs-shop-default", **AT_ONCE)
        stats = ship(sink, EVENT, EVENT, EVENT)
        assert stats.delivered == 3
        assert len(collector.requests) == 2
        assert len(collector.received) == 3


def test_opensearch_sink_delivers():
    """With user and password, or a token."""
    with ElasticsearchCollector(headers={"authorization": "Basic dTpw"}) as collector:
        sink = opensearch_sink(collector.url, "logs-shop-default", auth=("u", "p"), ecs=False)
        stats = ship(sink, EVENT)
        assert (stats.delivered, stats.name) == (1, "opensearch")
        assert collector.received[0]["event"] == "stock is low"
    with ElasticsearchCollector(headers={"authorization": "Bearer t"}) as collector:
        assert ship(opensearch_sink(collector.url, "logs-shop-default", token="t"), EVENT).delivered == 1
        assert ship(elasticsearch_sink(collector.url, "logs-shop-default", token="t"), EVENT).delivered == 1


def test_elasticsearch_that_is_blocked_keeps_the_events():
    """A full disk refuses every document with 403; they arrive once there is room, and the report says what it is."""
    with ElasticsearchCollector() as collector, CaptureSink() as dead:
        collector.statuses = [403] * 6
        sink = opensearch_sink(collector.url, "logs-shop-default", **AT_ONCE, dead_letter=dead)
        stats = ship(sink, EVENT, EVENT, EVENT)
        assert (stats.delivered, stats.dead_lettered, stats.dropped) == (3, 0, {})
        assert len(collector.received) == 3
        assert "403 some_exception" in stats.last_error


@pytest.mark.parametrize("factory", [elasticsearch_sink, opensearch_sink])
@pytest.mark.parametrize(
    "index",
    [
        *(
            "",
            " ",
            None,
            5,
            "Logs",
            "logs-Shop",
            "logs shop",
            "a/b",
            "a\\b",
            "a*",
            "a?",
            'a"',
            "a,b",
            "a#b",
            "a:b",
            "a|b",
        ),
        *("-logs", "_logs", "+logs", ".", "..", ".ds-logs", "<logs", "logs>", "a" * 256, "ä" * 128, "logs\n"),
    ],
)
def test_an_index_that_cannot_be_is_refused(factory, index):
    """At construction, with what is wrong with it."""
    with pytest.raises(ValueError, match=r"index=.* is not the name of an index: "):
        factory("http://localhost", index)


@pytest.mark.parametrize(
    "index", ["logs-shop-default", "a", ".hidden", "logs+1", "ä" * 127, "<Logs-{now/d}>", "a.b_c-1"]
)
def test_an_index_that_can_be(index):
    """Nothing else is refused."""
    assert elasticsearch_sink("http://localhost", index)._target.url.endswith(
        "/_bulk?filter_path=errors,items.*.status,items.*.error.type"
    )


def test_elasticsearch_has_one_credential():
    """A key and a token contradict each other."""
    with pytest.raises(ValueError, match="api_key"):
        elasticsearch_sink("http://localhost", "x", api_key="a", token="b")


def test_names_of_indexes_are_encoded():
    """Names with dates in them have characters of URLs."""
    target = elasticsearch_sink("http://localhost/es/", "<logs-{now/d}>")._target
    assert target.url.startswith("http://localhost/es/%3Clogs-%7Bnow%2Fd%7D%3E/_bulk?")


# -- Splunk


def test_splunk_sink_delivers():
    """With the token by its own scheme, from this machine."""
    with SplunkCollector("abc") as collector:
        stats = ship(splunk_sink(collector.url, "abc", source="shop"), EVENT)
        assert (stats.delivered, stats.name) == (1, "splunk")
        [event] = collector.received
        assert (event["host"], event["source"], event["event"]["left"]) == (socket.gethostname(), "shop", 3)


def test_splunk_token_that_is_wrong_keeps_the_events():
    """The token's callable is asked again, and the events arrive with the right one."""
    tokens = iter(["wrong"])
    with SplunkCollector("right") as collector:
        sink = splunk_sink(collector.url, lambda: next(tokens, "right"), **AT_ONCE)
        stats = ship(sink, EVENT)
        assert stats.delivered == 1
        assert [refused.body["code"] for refused in collector.refusals] == [4]
        assert "wrong" not in str(stats)


def test_splunk_index_that_is_wrong_keeps_the_events():
    """Code 7 has the status of an event that is wrong, and is not: nothing goes to the dead letters."""
    with SplunkCollector("abc") as collector, CaptureSink() as dead:
        sink = splunk_sink(collector.url, "abc", index="shop", **AT_ONCE, dead_letter=dead)
        sink.handle(EVENT)
        sink.handle(EVENT)
        collector.wait(2)
        collector.indexes = ("shop",)
        stats = ship(sink)
        assert (stats.delivered, stats.dead_lettered, dead.events) == (2, 0, [])
        assert "incorrect index" in stats.last_error


def test_splunk_event_that_is_wrong_is_found():
    """The rest is delivered."""
    with SplunkCollector("abc") as collector, CaptureSink() as dead:

        def refuse(request):
            if b"poison" in request.body:
                return Answer(400, {"text": "Invalid data format", "code": 6, "invalid-event-number": 1})
            return collector._receive(request)

        collector.default = refuse
        sink = splunk_sink(collector.url, "abc", dead_letter=dead, **AT_ONCE)
        stats = ship(sink, EVENT, {"event": "poison"}, EVENT)
        assert (stats.delivered, stats.dead_lettered) == (2, 1)
        assert [event["event"] for event in dead.events] == ["poison"]


def test_splunk_with_acknowledgement_wants_a_channel():
    """Which is sent in a header."""
    with SplunkCollector("abc", acknowledges=True) as collector:
        assert ship(splunk_sink(collector.url, "abc", channel="b0221cd8"), EVENT).delivered == 1


# -- Datadog


def test_datadog_sink_delivers(monkeypatch):
    """Compressed, with the key and tags of the environment."""
    monkeypatch.setenv("DD_API_KEY", "k")
    monkeypatch.setenv("DD_SERVICE", "shop")
    monkeypatch.setenv("DD_ENV", "prod")
    monkeypatch.setenv("DD_VERSION", "1.2")
    with DatadogCollector(headers={"dd-api-key": "k", "content-encoding": "gzip"}) as collector:
        stats = ship(datadog_sink(url=collector.url), EVENT)
        assert (stats.delivered, stats.name) == (1, "datadog")
        [log] = collector.received
        assert (log["service"], log["ddtags"]) == ("shop", "env:prod,version:1.2")
        assert (log["ddsource"], log["hostname"]) == ("python", socket.gethostname())


def test_datadog_arguments_win(monkeypatch):
    """Over the environment."""
    monkeypatch.setenv("DD_API_KEY", "k")
    monkeypatch.setenv("DD_SITE", "datadoghq.eu")
    monkeypatch.setenv("DD_ENV", "prod")
    assert datadog_sink()._target.url == "https://http-intake.logs.datadoghq.eu/api/v2/logs"
    assert datadog_sink(site="us5.datadoghq.com")._target.url.startswith("https://http-intake.logs.us5.datadoghq.com/")
    with DatadogCollector(headers={"dd-api-key": "other"}) as collector:
        sink = datadog_sink(
            "other", url=collector.url, service="s", hostname="h", source="py", tags=(), compression=None
        )
        ship(sink, EVENT)
        [log] = collector.received
        assert (log["service"], log["hostname"], log["ddsource"], "ddtags" in log) == ("s", "h", "py", False)
        assert "content-encoding" not in collector.requests[0].headers
    monkeypatch.delenv("DD_SITE")
    assert datadog_sink()._target.url == "https://http-intake.logs.datadoghq.com/api/v2/logs"


def test_datadog_limits():
    """Five megabytes a request; a batch that could never be taken is refused at construction, a key is needed."""
    with DatadogCollector() as collector:
        stats = ship(datadog_sink("k", url=collector.url), *({"event": "x" * 900_000} for _ in range(12)))
        assert (stats.delivered, stats.dropped) == (12, {})
        assert not collector.refusals
        assert max(len(request.body) for request in collector.requests) > 2_000_000
    with DatadogCollector() as collector:
        target = HTTPSink(f"{collector.url}/api/v2/logs", body=DatadogLogs())
        stats = ship(BackgroundSink(target, batch_size=2_500, on_error=lambda failure: None), *[EVENT] * 2_500)
        assert (stats.delivered, len(collector.received)) == (2_500, 2_500)
    with pytest.raises(ValueError, match="batch_size=1001"):
        datadog_sink("k", batch_size=1001)
    with pytest.raises(ValueError, match="DD_API_KEY"):
        datadog_sink()


def test_datadog_key_is_a_credential():
    """It does not cross the network in plain text, and is in no repr."""
    with pytest.raises(ValueError, match="plain text") as caught:
        datadog_sink("sesame", url="http://proxy.example.org")
    assert "sesame" not in str(caught.value)
    assert "sesame" not in repr(datadog_sink("sesame")._target)


# -- Graylog


def test_gelf_sink_delivers():
    """Each event in a request, in order."""
    with GELFCollector() as collector:
        stats = ship(gelf_sink(collector.url, host="web-1"), *({"event": str(number)} for number in range(5)))
        assert (stats.delivered, stats.name, len(collector.requests)) == (5, "graylog", 5)
        assert [message["short_message"] for message in collector.received] == list("01234")
        assert collector.received[0]["host"] == "web-1"


def test_gelf_sink_in_bulk():
    """One request for many, to a path that was given."""
    with GELFCollector() as collector:
        collector.path, collector.bulk = "/own", True
        stats = ship(gelf_sink(collector.url + "/own", bulk=True), *[EVENT] * 5)
        assert (stats.delivered, len(collector.requests), len(collector.received)) == (5, 1, 5)


# -- All


FACTORIES = {
    "otlp": otlp_sink,
    "loki": lambda url, **options: loki_sink(url, {"a": "b"}, **options),
    "elasticsearch": lambda url, **options: elasticsearch_sink(url, "logs-shop-default", **options),
    "opensearch": lambda url, **options: opensearch_sink(url, "logs-shop-default", **options),
    "splunk": lambda url, **options: splunk_sink(url, "abc", **options),
    "datadog": lambda url, **options: datadog_sink("abc", url=url, **options),
    "graylog": gelf_sink,
}


COLLECTORS = {
    "loki": LokiCollector,
    "otlp": OTLPCollector,
    "elasticsearch": ElasticsearchCollector,
    "opensearch": ElasticsearchCollector,
    "splunk": lambda: SplunkCollector("abc"),
    "datadog": DatadogCollector,
    "graylog": GELFCollector,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_options_go_to_the_sink_that_has_them(name):
    """To the HTTP sink, or to the one around it; level and processors run once."""
    calls = []

    def count(_logger, _name, event):
        calls.append(event)
        return event

    with COLLECTORS[name]() as collector:
        sink = FACTORIES[name](
            collector.url,
            level="error",
            processors=[count],
            name="mine",
            timeout=7,
            batch_size=1,
            headers={"x-a": "b"},
            fields=["event", "level", "left"],
        )
        assert (sink.name, sink.stats().targets[0].name) == ("mine", "mine")
        assert sink._target.timeout == (7, 7)
        stats = ship(sink, EVENT, *[{**EVENT, "level": "error"}] * 3)
        assert (stats.filtered, stats.delivered, len(calls)) == (1, 3, 3)
        assert [request.headers["x-a"] for request in collector.requests] == ["b"] * 3
        assert TRACE not in str(collector.received)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_option_that_nobody_has_is_refused(name):
    """A misspelt one is not ignored."""
    with pytest.raises(TypeError, match="capcity"):
        FACTORIES[name]("http://127.0.0.1:9", capcity=7)


@pytest.mark.parametrize(
    ("factory", "given", "near"),
    [
        (lambda **given: elasticsearch_sink("http://h", "logs", **given), "apikey", "'api_key'"),
        (lambda **given: loki_sink("http://h", **given), "label", "'labels'"),
        (lambda **given: splunk_sink("http://h", "t", **given), "source_type", "'sourcetype'"),
        (lambda **given: otlp_sink("http://h", **given), "resources", "'resource'"),
        (lambda **given: datadog_sink("k", **given), "tag", "'tags'"),
        (lambda **given: gelf_sink("http://h", **given), "batchsize", "'batch_size'"),
        (lambda **given: gelf_sink("http://h", **given), "fsync", "unless spool= names a directory"),
        (lambda **given: gelf_sink("http://h", spool="unused", **given), "capacity", "with spool="),
    ],
)
def test_the_nearest_option_is_named(factory, given, near):
    """For one that nobody has, and one that goes with another sink."""
    with pytest.raises(TypeError, match=rf"_sink\(\) has no argument '{given}'.*{near}"):
        factory(**{given: "x"})


def test_misconfiguration_is_told_at_once(monkeypatch):
    """By argument and value."""
    with pytest.raises(TypeError, match="token=None"):
        splunk_sink("http://localhost", None)
    for resource in (["a"], "a", 5):
        with pytest.raises(TypeError, match=r"resource=.* is not a mapping"):
            otlp_sink("http://localhost", resource=resource)


#: URLs by the collector, and the paths that requests go to.
PATHS = {
    ("splunk", ""): "/services/collector/event",
    ("splunk", "/"): "/services/collector/event",
    ("splunk", "/services/collector"): "/services/collector",
    ("splunk", "/services/collector/"): "/services/collector",
    ("splunk", "/services/collector/event/"): "/services/collector/event",
    ("splunk", "/services/collector/event/1.0"): "/services/collector/event/1.0",
    ("splunk", "/gateway/services/collector"): "/gateway/services/collector",
    ("splunk", "/gateway"): "/gateway/services/collector/event",
    ("loki", "/loki/api/v1/push/"): "/loki/api/v1/push",
    ("loki", "/loki/api/v1"): "/loki/api/v1/push",
    ("loki", "/api/prom/push"): "/api/prom/push",
    ("loki", "/loki"): "/loki/loki/api/v1/push",
    ("otlp", "/v1/logs/"): "/v1/logs",
    ("otlp", "/otlp"): "/otlp/v1/logs",
    ("datadog", "/api/v2/logs/"): "/api/v2/logs",
    ("datadog", "/api/v2"): "/api/v2/logs",
    ("datadog", "/v1/input"): "/v1/input",
    ("elasticsearch", "/_bulk"): "/logs-shop-default/_bulk",
    ("elasticsearch", "/logs-shop-default/_bulk"): "/logs-shop-default/_bulk",
    ("opensearch", "/logs-shop-default/_bulk/"): "/logs-shop-default/_bulk",
    ("graylog", "/gelf/"): "/gelf",
    ("graylog", ""): "/gelf",
    ("graylog", "/in"): "/in",
}


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_documented_paths_are_used_as_they_are(name, path):
    """With a slash at the end, in a short form, of another version, begun, or left out; a query stays."""
    with COLLECTORS[name]() as collector:
        collector.path = PATHS[name, path]
        ship(FACTORIES[name](f"{collector.url}{path}?a=b"), EVENT)
        assert collector.requests[0].query["a"] == ["b"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("splunk", "/services/collector/raw"),
        ("splunk", "/services/collector/raw/1.0/"),
        ("splunk", "/services/collector/health"),
        ("loki", "/loki/api/v1/query_range"),
        ("otlp", "/v1/traces"),
        ("datadog", "/api/v2/series"),
        ("elasticsearch", "/other/_bulk"),
    ],
)
def test_paths_that_take_something_else_are_refused(name, path):
    """At construction, not by the server at each request; no secret of the URL is told."""
    with pytest.raises(ValueError, match="url: it") as caught:
        FACTORIES[name](f"http://u:sesame@127.0.0.1:9{path}?key=sesame")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_login_page_delivers_nothing(name):
    """It comes with status 200; the events are kept, and arrive once it is gone."""
    page = Answer(200, "<html><title>Sign in</title>", {"Content-Type": "text/html"})
    with COLLECTORS[name]() as collector:
        collector.answers += [page] * 3
        stats = ship(FACTORIES[name](collector.url, **AT_ONCE), EVENT, EVENT)
        assert (stats.delivered, len(collector.received), stats.dropped) == (2, 2, {})
        assert "a page, “Sign in”" in stats.last_error


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_no_url_is_refused(name):
    """As HTTPSink refuses it, with nothing repeated that may be a secret."""
    for url in ("ftp://u:sesame@h", "http://[sesame", 5):
        with pytest.raises((ValueError, TypeError), match="url") as caught:
            FACTORIES[name](url)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_outage_changes_no_time(name):
    """An event keeps the time at which it happened, however late it is sent."""
    with COLLECTORS[name]() as collector:
        collector.answers.extend([503, 503])
        sink = FACTORIES[name](collector.url, **AT_ONCE)
        stats = ship(sink, {"event": "x", "timestamp": "2026-03-14T15:09:26.535897Z"})
        assert (stats.delivered, stats.retried) == (1, 2)
        told = str(collector.received[0])
        assert any(part in told for part in ("1773500966535897000", "1773500966.535897", "2026-03-14T15:09:26.535897Z"))


@pytest.mark.skipif(not flock.AVAILABLE, reason="needs flock")
@pytest.mark.parametrize("name", FACTORIES)
def test_with_a_directory_events_wait_on_disk(name, tmp_path):
    """What could not be sent is sent by the next sink for that directory, with the time it happened."""
    with COLLECTORS[name]() as collector:
        collector.stop()
        sink = FACTORIES[name](collector.url, spool=tmp_path, max_bytes=10**6, fields=["event", "timestamp"], **AT_ONCE)
        assert isinstance(sink, SpoolSink)
        sink.handle({"event": "x", "timestamp": "2026-03-14T15:09:26.535897Z", "secret": "sesame"})
        assert sink.close(0.2)
        assert (sink.stats().delivered, sink.stats().spooled) == (0, 1)
        assert not any(b"sesame" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        collector.start()
        sink = FACTORIES[name](collector.url, spool=tmp_path, max_bytes=10**6, **AT_ONCE)
        sink.start()
        until(lambda: collector.received)
        assert sink.close(30)
        assert (sink.stats().adopted, sink.stats().delivered) == (1, 1)
        told = str(collector.received[0])
        assert any(part in told for part in ("1773500966535897000", "1773500966.535897", "2026-03-14T15:09:26.535897Z"))


def test_two_lines_are_the_whole_set_up():
    """A logger, and a factory."""
    import logging

    with LokiCollector() as collector:
        sink = loki_sink(collector.url, {"app": "shop"})
        logging.getLogger("two.lines").addHandler(outfall.SinkHandler(sink))
        logging.getLogger("two.lines").error("disk is full")
        until(lambda: collector.received)
        logging.getLogger("two.lines").handlers.clear()
        sink.close()
        assert json.loads(collector.received[0][2])["event"] == "disk is full"


def test_paths_and_queries():
    """Are added to what a URL has."""
    assert with_path("http://h?a=b", "/p") == "http://h/p?a=b"
    assert with_path("http://h/x/", "/p") == "http://h/x/p"
    assert with_path("http://h/x/p", "/p") == "http://h/x/p"
    assert with_path("http://h/x", "/p", only_without=True) == "http://h/x"
    assert with_path("http://h/", "/p", only_without=True) == "http://h/p"
    assert with_query("http://h", "c=d") == "http://h?c=d"
    assert with_query("http://h?a=b", "c=d") == "http://h?a=b&c=d"
