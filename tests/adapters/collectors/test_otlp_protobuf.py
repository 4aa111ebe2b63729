"""OTLP as Protocol Buffers: what its JSON says, event by event, by the official classes; and what JSON cannot carry."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from outfall import (
    BackgroundSink,
    CaptureSink,
    FanoutSink,
    HTTPSink,
    MissingDependencyError,
    OTLPLogs,
    PausedDeliveryError,
    SpoolSink,
    open_sink,
    otlp_sink,
)
from tests.adapters._collectors import OTLPCollector, parse_otlp
from tests.adapters.collectors.test_bodies import EVENT, encoded, plain

PROTOBUF = {"content-type": "application/x-protobuf"}


def items_of(*events):
    """Return *events* as items, as the sink makes them in the thread that logs."""
    sink = HTTPSink("http://127.0.0.1:9", body=OTLPLogs())
    made = [sink.make_item(event) for event in events]
    sink.close()
    return made


def both(items, resource=None):
    """Return what each encoding says, parsed by the official classes."""
    binary = OTLPLogs(resource, encoding="protobuf").encode(items)
    return ExportLogsServiceRequest.FromString(binary), parse_otlp(OTLPLogs(resource).encode(items))


def told(request):
    """Return a request as bytes that are the same for the same content, NaN too."""
    return request.SerializeToString(deterministic=True)


def attributes_of(*events):
    """Return the attributes of each event's record, by name, with their types."""
    binary, by_json = both(items_of(*events))
    assert told(binary) == told(by_json)
    [resource] = binary.resource_logs
    records = [record for scope in resource.scope_logs for record in scope.log_records]
    return [{pair.key: plain(pair.value) for pair in record.attributes} for record in records]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=6), min_size=1, max_size=4),
    st.dictionaries(st.text(min_size=1), VALUES, max_size=3),
)
def test_both_encodings_say_the_same_of_any_event(events, resource):
    """Whatever is in the events and the resource, parsed by the official classes they are equal."""
    for item in items_of(*events):
        binary, by_json = both([item], resource)
        assert told(binary) == told(by_json)
    binary, by_json = both(items_of(*events), resource)
    assert told(binary) == told(by_json)


def test_the_usual_event_is_as_its_json_is():
    """Traces, times, levels, scopes, exceptions and call-site fields have their places in both."""
    try:
        raise ValueError("no such bolt")
    except ValueError as error:
        failed = {"event": "failed", "level": "error", "exc_info": error}
    events = [
        EVENT,
        failed,
        {"event": {"nested": [1, "two", None]}, "level": "audit", "trace_flags": "01", "lineno": 7},
        {"message": "renamed", "level": "critical", "logger": "db"},
        {},
    ]
    for event in events:
        binary, by_json = both(items_of(event), {"service.name": "shop", "key": b"\x00\xff"})
        assert told(binary) == told(by_json)
    [resource] = both(items_of(*events))[0].resource_logs
    assert [scope.scope.name for scope in resource.scope_logs] == ["shop.orders", "", "db"]
    first = resource.scope_logs[0].log_records[0]
    assert first.time_unix_nano == 1773500966535897123
    assert first.trace_id.hex() == EVENT["trace_id"]


def test_what_json_has_no_place_for_arrives():
    """Bytes, NaN, the infinities and long integers, on their own and within others, behind names that are given way."""
    [found] = attributes_of(
        {
            "raw": b"\x00\xff",
            "array": bytearray(b"ab"),
            "view": memoryview(b"cd"),
            "nan": math.nan,
            "up": math.inf,
            "down": -math.inf,
            "none": None,
            "large": 2**63 - 1,
            "larger": 2**64,
            "least": -(2**63),
            "nested": {"raw": [b"\x01", math.inf], "deeper": {"nan": math.nan}},
            "a.b": b"dotted",
            "a": {"b": math.inf},
        }
    )
    assert math.isnan(found.pop("nan")[1])
    nested = found.pop("nested")
    assert nested["raw"] == [("bytes_value", b"\x01"), ("double_value", math.inf)]
    assert math.isnan(nested["deeper"]["nan"][1])
    assert found.pop("raw") == ("bytes_value", b"\x00\xff")
    assert found.pop("array") == ("bytes_value", b"ab")
    assert found.pop("view") == ("bytes_value", b"cd")
    assert (found.pop("up")[1], found.pop("down")[1]) == (math.inf, -math.inf)
    assert found.pop("none") is None
    assert found.pop("large") == ("int_value", 2**63 - 1)
    assert found.pop("least") == ("int_value", -(2**63))
    assert found.pop("larger") == ("string_value", str(2**64))
    assert b"dotted" in [value[1] for value in found.values() if isinstance(value, tuple)]


def test_numbers_of_numpy_are_not_finite_either():
    """A subclass of float is one."""
    numpy = pytest.importorskip("numpy")
    [found] = attributes_of({"x": numpy.float64("nan"), "y": numpy.float64("-inf")})
    assert math.isnan(found["x"][1])
    assert found["y"] == ("double_value", -math.inf)


def test_the_event_may_be_changed_while_it_waits():
    """What waits is a copy."""
    raw, nested = bytearray(b"before"), [math.nan]
    [item] = items_of({"event": "a", "raw": raw, "nested": nested})
    raw[:] = b"after!"
    nested.append(b"more")
    assert item.event["raw"] == b"before"
    assert len(item.event["nested"]) == 1


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
@pytest.mark.parametrize("around", ["background", "fanout", "dead letter of a fanout"])
def test_types_are_kept_in_memory_all_the_way(encoding, around):
    """From handle to the collector, in a batch with usual events, in both encodings."""
    with OTLPCollector() as collector:
        target = HTTPSink(f"{collector.url}/v1/logs", body=OTLPLogs(encoding=encoding))
        if around != "background":
            target = FanoutSink(target, CaptureSink())
        with BackgroundSink(target, on_error="raise") as sink:
            for number in range(3):
                sink.handle({"event": "usual", "level": "info", "number": number, "none": None})
                sink.handle({"event": "odd", "level": "info", "raw": b"\xfe", "nan": math.nan})
    found = [{pair.key: plain(pair.value) for pair in record.attributes} for _, record in collector.received]
    assert [each.get("raw") for each in found] == [None, ("bytes_value", b"\xfe")] * 3
    assert all(math.isnan(each["nan"][1]) for each in found[1::2])
    assert all(each["none"] is None for each in found[::2])


def test_a_spool_keeps_json(tmp_path):
    """On disk bytes are text and NaN is null, as its documentation says; nothing is lost with them."""
    with OTLPCollector() as collector:
        target = HTTPSink(f"{collector.url}/v1/logs", body=OTLPLogs(encoding="protobuf"))
        with SpoolSink(target, tmp_path / "spool", on_error="raise") as sink:
            sink.handle({"event": "odd", "level": "info", "raw": b"\xfe", "nan": math.nan})
    [(_, record)] = collector.received
    found = {pair.key: plain(pair.value) for pair in record.attributes}
    assert found == {"raw": ("string_value", "\\xfe"), "nan": None}


def test_protobuf_is_sent_compressed_and_answered_in_kind():
    """The content type says so, and how many were refused is read from an answer of the same kind."""
    failures = []
    with OTLPCollector() as collector:
        collector.rejects = 2
        with otlp_sink(collector.url, encoding="protobuf", compression="gzip", on_error=failures.append) as sink:
            for number in range(5):
                sink.handle({"event": "a", "level": "info", "number": number})
        assert sink.stats().dropped == {"rejected": 2}
    assert {request.headers["content-type"] for request in collector.requests} == {"application/x-protobuf"}
    assert collector.resources[0].attributes[0].key == "service.name"
    assert len(collector.received) == 5
    assert failures


@pytest.mark.parametrize(
    ("headers", "body", "refused"),
    [
        (PROTOBUF, b"", 0),
        (PROTOBUF, ExportLogsServiceResponse().SerializeToString(), 0),
        (
            PROTOBUF,
            ExportLogsServiceResponse(
                partial_success=ExportLogsPartialSuccess(rejected_log_records=1, error_message="too old")
            ).SerializeToString(),
            1,
        ),
        (PROTOBUF, b"\xff\xff no message", 0),
        ({"content-type": "application/json"}, b'{"partialSuccess":{"rejectedLogRecords":"1"}}', 1),
    ],
)
def test_answers_of_either_kind_are_read(headers, body, refused):
    """Some servers answer in JSON whatever they were sent; what cannot be read refuses nothing."""
    answer = OTLPLogs(encoding="protobuf").read(200, headers, body, encoded(EVENT, EVENT))
    assert (0 if answer is None else answer.rejected_unknown) == refused


def test_a_page_of_html_is_no_collectors():
    """A gateway's login page with status 200 keeps the events."""
    with pytest.raises(PausedDeliveryError):
        OTLPLogs(encoding="protobuf").read(200, {"content-type": "text/html"}, b"<html>", encoded(EVENT))


@pytest.mark.parametrize(
    ("protocol", "argument", "content_type"),
    [
        (None, None, "application/json"),
        ("http/json", None, "application/json"),
        ("http/protobuf", None, "application/x-protobuf"),
        ("http/protobuf", "json", "application/json"),
        ("grpc", "protobuf", "application/x-protobuf"),
    ],
)
def test_the_environment_says_which_unless_the_call_does(monkeypatch, protocol, argument, content_type):
    """OTEL_EXPORTER_OTLP_PROTOCOL, and the variable for logs before it."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL", raising=False)
    if protocol:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", protocol)
    with otlp_sink("http://127.0.0.1:9", encoding=argument) as sink:
        assert sink.target.body.content_type == content_type


def test_a_protocol_that_is_none_is_refused(monkeypatch):
    """By the name of the variable, and of the argument."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/thrift")
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_PROTOCOL='http/thrift'"):
        otlp_sink("http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"encoding='protobuff'.*did you mean 'protobuf'"):
        OTLPLogs(encoding="protobuff")


def test_a_url_says_it_too():
    """encoding=protobuf in the query."""
    with open_sink("otlp+http://127.0.0.1:9?encoding=protobuf") as sink:
        assert sink.target.body.encoding == "protobuf"


def test_without_the_package_the_extra_is_named(monkeypatch):
    """At construction, not with the first batch."""
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.logs.v1.logs_service_pb2", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[otel\]"):
        OTLPLogs(encoding="protobuf")
    OTLPLogs()
