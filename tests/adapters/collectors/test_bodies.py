"""The bodies that collectors get: what goes where, and that each collector's own parser takes any event."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from outfall import CaptureSink
from outfall.adapters.collectors.datadog import DatadogLogs
from outfall.adapters.collectors.elasticsearch import ElasticsearchBulk
from outfall.adapters.collectors.fields import exact_time, hex_id, nanoseconds, syslog_severity, utc_text
from outfall.adapters.collectors.gelf import GELFMessage
from outfall.adapters.collectors.loki import LokiStreams
from outfall.adapters.collectors.otlp import OTLPLogs
from outfall.adapters.collectors.placement import Placement
from outfall.adapters.collectors.splunk import SplunkEvents
from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.errors import (
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.exceptions import failure_of
from tests.adapters._collectors import (
    Refused,
    parse_bulk,
    parse_datadog,
    parse_gelf,
    parse_hec,
    parse_loki,
    parse_otlp,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIME = "2026-03-14T15:09:26.535897123Z"
NANOSECONDS = 1773500966535897123
EVENT = {
    "timestamp": TIME,
    "level": "warning",
    "logger": "shop.orders",
    "event": "stock is low",
    "trace_id": TRACE,
    "span_id": SPAN,
    "item": "bolt M4",
    "left": 3,
}


def encoded(*events):
    """Return *events* as items, as a sink makes them."""
    sink = CaptureSink()
    return [sink.encode(event) for event in events]


def raised():
    """Return the fields of an exception, and the text of its traceback."""
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        event = CaptureSink().encode({"exc_info": error}).event
    return event, event["exception"]


# -- What is read from an event


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2026-03-14T15:09:26.535897123Z", NANOSECONDS),
        ("2026-03-14T15:09:26.5358971239Z", NANOSECONDS),
        ("2026-03-14T17:09:26,535897+02:00", NANOSECONDS - 123),
        ("2026-03-14 15:09:26.5Z", NANOSECONDS - 35897123),
        ("2026-03-14T15:09:26Z", NANOSECONDS - 535897123),
        (1773500966, 1773500966 * 10**9),
        (1773500966.1234567, 1773500966123456700),
        ("1969-01-01T00:00:00Z", 0),
        ("2500-01-01T00:00:00Z", 2**63 - 1),
        ("yesterday", None),
        ("2026-03-14T15:09:26.٣Z", 1773500966300000000),
        (1e300, None),
        (True, None),
        (None, None),
    ],
)
def test_the_time_is_exact(stamp, expected):
    """All digits of a timestamp count, whatever its form, within what collectors take."""
    assert exact_time({"timestamp": stamp}) == expected


def test_a_time_without_an_offset_is_utc():
    """As everywhere in this package; a datetime without a zone is local, and gets its zone when it is rendered."""
    assert exact_time({"timestamp": "2026-03-14T15:09:26.25"}) == 1_773_500_966_250_000_000
    naive = dt.datetime(2026, 3, 14, 15, 9, 26, 250_000)  # noqa: DTZ001 - that is what is tested
    [item] = encoded({"timestamp": naive})
    assert exact_time(item.event) == round(naive.timestamp() * 1_000) * 1_000_000
    assert item.time == naive.timestamp()


def test_an_event_without_a_time_has_the_one_it_was_taken_at():
    """To the microsecond, which is what a float has."""
    assert nanoseconds(Encoded(b"{}", 20, 1773500966.535897), {}) == NANOSECONDS - 123
    assert nanoseconds(Encoded(b"{}", 20, math.nan), {}) == 0
    assert nanoseconds(Encoded(b"{}", 20, -5.0), {"timestamp": "never"}) == 0


def test_a_time_as_text_has_as_many_digits_as_it_needs():
    """Microseconds, or nanoseconds where there are any."""
    assert utc_text(NANOSECONDS) == TIME
    assert utc_text(NANOSECONDS - 123) == "2026-03-14T15:09:26.535897Z"
    assert utc_text(0) == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), TRACE),
        ("0x" + TRACE, TRACE),
        (int(TRACE, 16), TRACE),
        (1, "0" * 31 + "1"),
        (0, None),
        (2**128, None),
        ("0" * 32, None),
        (SPAN, None),
        ("g" * 32, None),
        (True, None),
        (None, None),
    ],
)
def test_ids_of_traces_are_hexadecimal(value, expected):
    """Text with the right number of digits, or a number; all else is a field like others."""
    assert hex_id(value, 32) == expected


def test_dict_tracebacks_are_read():
    """What structlog's dict_tracebacks makes gives type, message and a traceback as text, oldest first."""
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        event = structlog.processors.dict_tracebacks(None, "error", {"exc_info": True})
    kind, message, stack = failure_of(event)
    assert (kind, message) == ("RuntimeError", "outer")
    assert stack.index("KeyError: ") < stack.index("RuntimeError: outer")
    assert __file__ in stack
    assert failure_of({"exception": [{"frames": ["x"]}]}) == (
        None,
        None,
        'Traceback (most recent call last):\n  File "None", line None, in None\nNone: None',
    )


@pytest.mark.parametrize("exception", [None, "", [], [1], 5, {}])
def test_what_is_no_exception_is_none(exception):
    """A field of that name may hold anything."""
    assert failure_of({"exception": exception}) is None


def test_syslog_severities():
    """The numbers that GELF wants; a level nobody knows is a notice."""
    assert [syslog_severity(level) for level in (0, 10, 20, 25, 30, 40, 50, 99, math.inf)] == [
        *(7, 7, 6, 5, 4, 3, 2, 2, 5)
    ]


# -- OpenTelemetry


def otlp(*events, **options):
    """Return the one resource, and the records with their scope's name."""
    [resource] = parse_otlp(OTLPLogs(**options).encode(encoded(*events))).resource_logs
    return resource.resource, [
        (scope.scope.name, record) for scope in resource.scope_logs for record in scope.log_records
    ]


def plain(value):
    """Return what an AnyValue holds, with its type's name."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: plain(each.value) for each in value.kvlist_value.values}
    return (kind, getattr(value, kind)) if kind else None


def attributes(record):
    """Return the attributes of a record or a resource, with their types."""
    return {each.key: plain(each.value) for each in record.attributes}


def test_otlp_has_a_place_for_everything():
    """Message, level, exact times, trace, span and flags are fields of the record, all else are attributes."""
    _, [(scope, record)] = otlp({**EVENT, "trace_flags": "01"})
    assert scope == "shop.orders"
    assert plain(record.body) == ("string_value", "stock is low")
    assert (record.severity_number, record.severity_text) == (13, "warning")
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (NANOSECONDS, NANOSECONDS)
    assert (record.trace_id.hex(), record.span_id.hex(), record.flags) == (TRACE, SPAN, 1)
    assert attributes(record) == {"item": ("string_value", "bolt M4"), "left": ("int_value", 3)}


def test_otlp_attributes_keep_their_type():
    """Text, booleans, integers of 64 bits, floats, lists, mappings and None; larger integers keep their digits."""
    _, [(_, record)] = otlp(
        {
            "event": "x",
            "text": "é",
            "yes": True,
            "most": 2**63 - 1,
            "least": -(2**63),
            "more": 2**63,
            "half": 0.5,
            "list": [1, "a", [None]],
            "dict": {"a": {"b": False}},
            "none": None,
            "empty": {},
        }
    )
    assert attributes(record) == {
        "text": ("string_value", "é"),
        "yes": ("bool_value", True),
        "most": ("int_value", 2**63 - 1),
        "least": ("int_value", -(2**63)),
        "more": ("string_value", str(2**63)),
        "half": ("double_value", 0.5),
        "list": [("int_value", 1), ("string_value", "a"), [None]],
        "dict": {"a": {"b": ("bool_value", False)}},
        "none": None,
        "empty": {},
    }


def test_otlp_resource():
    """Its attributes have types too, bytes and infinities among them."""
    given_ = {"service.name": "shop", "pid": 7, "key": b"\x00\xff", "most": math.inf, "x": (1,), "when": dt.date.min}
    resource, _ = otlp({"event": "x"}, resource=given_)
    assert attributes(resource) == {
        "service.name": ("string_value", "shop"),
        "pid": ("int_value", 7),
        "key": ("bytes_value", b"\x00\xff"),
        "most": ("double_value", math.inf),
        "x": [("int_value", 1)],
        "when": ("string_value", "0001-01-01"),
    }
    resource, _ = otlp({"event": "x"}, resource={"least": -math.inf, "none": math.nan})
    assert str(attributes(resource)) == "{'least': ('double_value', -inf), 'none': ('double_value', nan)}"


@pytest.mark.parametrize("resource", [["a"], "a", {1: "a"}])
def test_otlp_refuses_a_resource_that_is_none(resource):
    """Attributes have names, which are text."""
    with pytest.raises(TypeError, match="resource="):
        OTLPLogs(resource)


def test_otlp_records_are_grouped_by_logger():
    """One scope for each logger, in the order in which they appear; records of a scope stay in order."""
    events = [{"event": str(number), "logger": "ab"[number % 2]} for number in range(4)]
    _, records = otlp(*events, {"event": "none"}, {"event": "number", "logger": 5})
    assert [(name, record.body.string_value) for name, record in records] == [
        *(("a", "0"), ("a", "2"), ("b", "1"), ("b", "3"), ("", "none"), ("", "number"))
    ]
    assert attributes(records[-1][1]) == {"logger": ("int_value", 5)}


@pytest.mark.parametrize(
    ("event", "number", "text"),
    [
        ({"level": "trace"}, 1, "trace"),
        ({"level": "debug"}, 5, "debug"),
        ({"level": "INFO"}, 9, "INFO"),
        ({}, 9, "info"),
        ({"level": "notice"}, 10, "notice"),
        ({"level": 30}, 13, "warning"),
        ({"level": "error"}, 17, "error"),
        ({"level": "critical"}, 21, "critical"),
        ({"level_number": 60}, 22, "level 60"),
        ({"level_number": -1}, 1, "level -1"),
        ({"level": "odd"}, 0, "odd"),
        ({"level": ["odd"]}, 0, ""),
    ],
)
def test_otlp_severities(event, number, text):
    """The number is the level's; the text is the event's own."""
    _, [(_, record)] = otlp({"event": "x", **event})
    assert (record.severity_number, record.severity_text) == (number, text)


def test_otlp_keeps_what_it_cannot_place():
    """Ids, flags, times and levels that are none stay attributes."""
    event = {"trace_id": "no", "span_id": 0, "trace_flags": "zz", "timestamp": "never", "level": [1], "lineno": "x"}
    _, [(_, record)] = otlp(event)
    assert attributes(record).keys() == event.keys()
    _, [(_, record)] = otlp({"trace_flags": "0a"})
    assert (record.flags, attributes(record)) == (10, {})
    _, [(_, record)] = otlp({"trace_flags": 2**32})
    assert attributes(record) == {"trace_flags": ("int_value", 2**32)}


def test_otlp_exceptions_and_call_sites_have_conventional_names():
    """As the semantic conventions name them."""
    failure, text = raised()
    site = {"pathname": "/a.py", "func_name": "f", "lineno": 3, "thread": 4, "thread_name": "main"}
    _, [(_, record)] = otlp({"event": "x", **failure, **site})
    assert attributes(record) == {
        "exception.type": ("string_value", "ValueError"),
        "exception.message": ("string_value", "first\nsecond"),
        "exception.stacktrace": ("string_value", text),
        "code.file.path": ("string_value", "/a.py"),
        "code.function.name": ("string_value", "f"),
        "code.line.number": ("int_value", 3),
        "thread.id": ("int_value", 4),
        "thread.name": ("string_value", "main"),
    }
    _, [(_, record)] = otlp({"exception": [{"exc_type": "E", "exc_value": "v"}]})
    assert attributes(record)["exception.type"] == ("string_value", "E")
    assert attributes(record)["exception_"] == [{"exc_type": ("string_value", "E"), "exc_value": ("string_value", "v")}]


def test_otlp_takes_deep_nests():
    """What is deeper than parsers go is JSON as text."""
    nest = {"end": 1}
    for _ in range(25):
        nest = {"in": [nest]}
    _, [(_, record)] = otlp({"nest": nest})
    found, depth = attributes(record)["nest"], 0
    while not isinstance(found, tuple):
        found, depth = found["in"] if isinstance(found, dict) else found[0], depth + 1
    assert depth == 16
    for _ in range(depth // 2):
        nest = nest["in"][0]
    assert (found[0], json.loads(found[1])) == ("string_value", nest)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"x"}}', BatchResult(rejected_unknown=2)),
        (b'{"partialSuccess":{"rejectedLogRecords":1}}', BatchResult(rejected_unknown=1)),
        (b'{"partialSuccess":{"errorMessage":"a warning"}}', None),
        (b'{"partialSuccess":{"rejectedLogRecords":0}}', None),
        (b'{"partialSuccess":{"rejectedLogRecords":"many"}}', None),
        (b'{"partialSuccess":null}', None),
        (b"{}", None),
        (b"", None),
        (b"\x0a\x00", None),
    ],
)
def test_otlp_partial_success(body, expected):
    """How many were refused is read; a warning, and what is no JSON, refuses nothing."""
    assert OTLPLogs().read(200, {}, body, encoded(EVENT, EVENT, EVENT)) == expected


def test_otlp_knows_which_were_refused_if_all_were():
    """Then each has its reason, and can go to the dead letters."""
    body = b'{"partialSuccess":{"rejectedLogRecords":"2"}}'
    result = OTLPLogs().read(200, {}, body, encoded(EVENT, EVENT))
    assert result.rejected.keys() == {0, 1}
    assert result.rejected_unknown == 0


# -- Loki


def loki(*events, **options):
    """Return the entries."""
    return parse_loki(LokiStreams(options.pop("labels", {"app": "shop"}), **options).encode(encoded(*events)))


def test_loki_lines_are_the_events():
    """With exact time, the labels that were chosen, and the trace beside the line."""
    [(labels, when, line, metadata)] = loki(EVENT)
    assert labels == {"app": "shop", "level": "warning"}
    assert when == NANOSECONDS
    assert json.loads(line) == EVENT
    assert metadata == {"trace_id": TRACE, "span_id": SPAN}


def test_loki_streams_are_grouped_and_stay_in_order():
    """What has the same labels is one stream, whose lines are in the order of the events."""
    events = [{"event": number, "level": ("info", "error")[number % 3 == 0]} for number in range(9)]
    entries = loki(*events)
    by_level = {}
    for labels, _, line, _ in entries:
        by_level.setdefault(labels["level"], []).append(json.loads(line)["event"])
    assert by_level == {"error": [0, 3, 6], "info": [1, 2, 4, 5, 7, 8]}


def test_loki_labels_come_from_fields():
    """By name or path; what is no text is JSON, what is missing or empty is no label, what is long is cut."""
    options = {"label_fields": {"level": "level", "shop": "order.shop", "ok": "ok", "long": "long", "no": "no"}}
    event = {"event": "x", "order": {"shop": 5}, "ok": True, "long": "ä" * 2000, "no": ""}
    [(labels, *_)] = loki(event, **options)
    assert labels == {"app": "shop", "level": "info", "shop": "5", "ok": "true", "long": "ä" * 1024}
    [(labels, *_)] = loki({"order": 5}, **options)
    assert labels == {"app": "shop", "level": "info"}
    [(labels, *_)] = loki({"order.shop": "dotted", "order": {"shop": 5}}, **options)
    assert labels["shop"] == "dotted"


def test_loki_always_has_a_label():
    """It takes no stream without."""
    [(labels, *_)] = loki({"event": "x"}, labels=None, label_fields=())
    assert labels == {"service_name": "unknown_service"}


def test_loki_structured_metadata_is_chosen():
    """Names are made such that they may stand there, values are text; none is sent where there is none."""
    [(*_, metadata)] = loki({"a": {"b": [1]}, "c": None}, structured_metadata=["a.b", "c"])
    assert metadata == {"a_b": "[1]"}
    [(*_, metadata)] = loki(EVENT, structured_metadata=())
    assert metadata == {}
    body = json.loads(LokiStreams({"a": "b"}).encode(encoded({"event": "x"})))
    assert len(body["streams"][0]["values"][0]) == 2


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"labels": ["a"]}, TypeError, "labels="),
        ({"labels": {"a": 1}}, TypeError, "'a'"),
        ({"labels": {"a-b": "x"}}, ValueError, "'a-b'"),
        ({"labels": {"__a": "x"}}, ValueError, "'__a'"),
        ({"labels": {"level": "x"}}, ValueError, "'level'"),
        ({"label_fields": "level"}, TypeError, "label_fields='level'"),
        ({"label_fields": ["a.b"]}, ValueError, "'a.b'"),
        ({"label_fields": {"a": 1}}, TypeError, "label_fields="),
        ({"structured_metadata": "trace_id"}, TypeError, "structured_metadata='trace_id'"),
        ({"structured_metadata": 5}, TypeError, "structured_metadata=5"),
    ],
)
def test_loki_refuses_labels_that_loki_would_refuse(options, error, told):
    """At construction, naming the label."""
    with pytest.raises(error, match=told):
        LokiStreams(**options)


def test_loki_that_is_told_to_take_nothing_is_not_a_success():
    """Status 260 pauses, and keeps the events."""
    assert LokiStreams().read(204, {}, b"", []) is None
    with pytest.raises(PausedDeliveryError, match="260"):
        LokiStreams().read(260, {}, b"blocked", [])


# -- Elasticsearch


def test_elasticsearch_documents_have_names_of_the_common_schema():
    """A line with the action, a line with the document, and a line break at the end."""
    body = ElasticsearchBulk().encode(encoded(EVENT))
    [(action, document)] = parse_bulk(body)
    assert action == {}
    assert document == {
        "@timestamp": TIME,
        "log.level": "warning",
        "message": "stock is low",
        "ecs.version": "8.11.0",
        "log.logger": "shop.orders",
        "trace.id": TRACE,
        "span.id": SPAN,
        "item": "bolt M4",
        "left": 3,
    }


def test_elasticsearch_exceptions_and_odd_fields():
    """Exceptions have names of their own; what has no place keeps its name, and gives way to what has."""
    failure, text = raised()
    event = {"event": {"a": 1}, "message": "mine", **failure, "trace_id": "no", "timestamp": "x", "level": 20}
    [(_, document)] = parse_bulk(ElasticsearchBulk().encode(encoded(event)))
    document.pop("@timestamp")
    assert document == {
        "log.level": "info",
        "message": '{"a":1}',
        "ecs.version": "8.11.0",
        "error.type": "ValueError",
        "error.message": "first\nsecond",
        "error.stack_trace": text,
        "message_": "mine",
        "trace_id": "no",
        "timestamp": "x",
    }
    [(_, document)] = parse_bulk(ElasticsearchBulk().encode(encoded({"message": "renamed"})))
    assert document["message"] == "renamed"
    [(_, document)] = parse_bulk(ElasticsearchBulk().encode(encoded({"exception": [{"exc_type": "E"}]})))
    assert document["error.type"] == "E"
    assert document["exception"] == [{"exc_type": "E"}]


def test_names_that_are_taken_give_way_to_all_there_are():
    """No field is lost, whatever names the others have."""
    event = {"event": "x", "message__": 1, "message_": 2, "message": 3}
    [(_, document)] = parse_bulk(ElasticsearchBulk().encode(encoded(event)))
    found = {name: document[name] for name in document if name.startswith("message")}
    assert found == {"message": "x", "message__": 1, "message_": 2, "message___": 3}


def test_elasticsearch_may_leave_the_event_as_it_is():
    """Only the time is added, unless it is there."""
    [(_, document)] = parse_bulk(ElasticsearchBulk(ecs=False).encode(encoded(EVENT)))
    assert document == {"@timestamp": TIME, **EVENT}
    own = {"@timestamp": "2020-01-01T00:00:00Z", "event": "x"}
    assert parse_bulk(ElasticsearchBulk(ecs=False).encode(encoded(own)))[0][1] == own


def test_elasticsearch_ids_are_the_same_at_every_retry():
    """Of the batch, of a part of it, and of a part of that; without, the server chooses."""
    items = encoded(*({"event": number} for number in range(4)))

    def ids(batch):
        return [action["_id"] for action, _ in parse_bulk(ElasticsearchBulk().encode(batch))]

    batch = Batch(items, "key")
    assert len(set(ids(batch))) == 4
    assert ids(batch) == ids(Batch(items, "key")) != ids(Batch(items, "other"))
    assert ids(batch.part([1, 3])) == ids(batch)[1::2]
    assert ids(batch.part([1, 3]).part([1])) == ids(batch)[3:]
    assert ids(Batch(items, 'a "quoted" key'))[0].startswith('a "quoted" key')
    assert parse_bulk(ElasticsearchBulk(document_ids=False).encode(batch))[0][0] == {}


def _bulk(*statuses, kind="mapper_parsing_exception"):
    items = [{"create": {"status": status}} for status in statuses]
    for item in items:
        if item["create"]["status"] >= 300:
            item["create"]["error"] = {"type": kind, "reason": "of the secret 'abc'"}
    return json.dumps({"errors": any(status >= 300 for status in statuses), "items": items}).encode()


def test_elasticsearch_answers_for_each_document():
    """429 and 5xx are tried again, 409 was there before, all else is refused, by a reason without values."""
    items = encoded(*[EVENT] * 6)
    result = ElasticsearchBulk().read(200, {}, _bulk(201, 429, 503, 409, 400, 200), items)
    assert result.retry == [1, 2]
    assert result.rejected == {4: "the server refused the document: 400 mapper_parsing_exception"}
    assert ElasticsearchBulk().read(200, {}, _bulk(201, 409), items[:2]) is None
    assert ElasticsearchBulk().read(200, {}, _bulk(400, 400), items[:1]).rejected.keys() == {0}


def test_elasticsearch_success():
    """What says that there were no errors is not looked into."""
    assert ElasticsearchBulk().read(200, {}, b'{"errors":false,"items":[]}', encoded(EVENT)) is None


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"{}", b"[]", b"", b'{"errors":true,"items":[{"create":{}}]}', b'{"errors":true,"items":[[]]}'],
)
def test_elasticsearch_answers_that_are_none(body):
    """What does not say what became of the documents is no success; they are sent again."""
    with pytest.raises(PausedDeliveryError, match="200"):
        ElasticsearchBulk().read(200, {}, body, encoded(EVENT))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, "cluster_block_exception"),
        (429, "cluster_block_exception"),
        (401, "security_exception"),
        (403, "security_exception"),
        (404, "index_not_found_exception"),
        (400, "index_closed_exception"),
        (400, "invalid_index_name_exception"),
        (400, "validation_exception"),
        (405, "method_not_allowed"),
        (418, ""),
    ],
)
def test_elasticsearch_statuses_that_speak_of_the_cluster(status, kind):
    """They refuse no document: if all have one, the delivery pauses and says why; if some, those are tried again."""
    items = encoded(EVENT, EVENT, EVENT)
    with pytest.raises(PausedDeliveryError, match=f"{status} {kind}".strip()):
        ElasticsearchBulk().read(200, {}, _bulk(status, status, status, kind=kind), items)
    with pytest.raises(PausedDeliveryError):
        ElasticsearchBulk().read(200, {}, _bulk(status, kind=kind), items[:1])
    result = ElasticsearchBulk().read(200, {}, _bulk(201, status, status, kind=kind), items)
    assert (result.retry, result.rejected) == ([1, 2], {})


def test_elasticsearch_that_is_busy_passes():
    """If all documents are to be tried again, the status is told."""
    with pytest.raises(TemporaryDeliveryError, match="429 es_rejected_execution_exception") as caught:
        ElasticsearchBulk().read(
            200, {}, _bulk(429, 503, kind="es_rejected_execution_exception"), encoded(EVENT, EVENT)
        )
    assert type(caught.value) is TemporaryDeliveryError


def test_elasticsearch_reason_that_every_document_meets():
    """An illegal argument may be the document's or the index's: one that all have is the index's."""
    items = encoded(EVENT, EVENT)
    with pytest.raises(PausedDeliveryError, match="illegal_argument_exception"):
        ElasticsearchBulk().read(200, {}, _bulk(400, 400, kind="illegal_argument_exception"), items)
    result = ElasticsearchBulk().read(200, {}, _bulk(400, 201, kind="illegal_argument_exception"), items)
    assert (result.retry, list(result.rejected)) == ([], [0])
    result = ElasticsearchBulk().read(200, {}, _bulk(400, kind="illegal_argument_exception"), items[:1])
    assert list(result.rejected) == [0]


@pytest.mark.parametrize("kind", ["invalid_index_name_exception", "illegal_argument_exception", "security_exception"])
def test_elasticsearch_requests_that_are_refused_as_a_whole(kind):
    """They pause, though the status is 400; by other errors and statuses it is as for any server."""
    body = json.dumps({"error": {"type": kind, "reason": "of the secret abc"}, "status": 400}).encode()
    failure = ElasticsearchBulk().refusal(400, {}, body)
    assert type(failure) is PausedDeliveryError
    assert "abc" not in str(failure)
    assert ElasticsearchBulk().refusal(503, {}, body) is None
    for other in (b'{"error":{"type":"parse_exception"}}', b'{"error":"x"}', b"<html>", b"[]"):
        assert ElasticsearchBulk().refusal(400, {}, other) is None


def test_elasticsearch_answers_that_leave_documents_out():
    """It is not known what became of them."""
    with pytest.raises(PausedDeliveryError, match="something else"):
        ElasticsearchBulk().read(200, {}, _bulk(201, 400), encoded(EVENT, EVENT, EVENT))


def test_elasticsearch_errors_without_a_type():
    """Older servers send a text."""
    body = b'{"errors":true,"items":[{"create":{"status":400,"error":"abc"}}]}'
    result = ElasticsearchBulk().read(200, {}, body, encoded(EVENT))
    assert result.rejected == {0: "the server refused the document: 400"}


# -- Splunk


def test_splunk_events_have_their_time_and_origin():
    """The event as it is, its time in seconds, where it comes from, and what is indexed."""
    made = SplunkEvents(host="h", source="s", index="main").encode(encoded(EVENT, {"event": "x"}))
    first, second = parse_hec(made)
    assert b'"time":1773500966.535897,' in made
    assert first == {
        "time": 1773500966.535897,
        "event": EVENT,
        "host": "h",
        "source": "s",
        "sourcetype": "_json",
        "index": "main",
        "fields": {"trace_id": TRACE, "span_id": SPAN},
    }
    assert "fields" not in second


def test_splunk_options():
    """Nothing but time and event is sent if nothing is asked for; indexed fields are text, and may be nested."""
    [event] = parse_hec(SplunkEvents(sourcetype=None).encode(encoded({"a": 1})))
    assert event.keys() == {"time", "event"}
    format_ = SplunkEvents(indexed_fields=["order.id"], channel="b0221cd8")
    [event] = parse_hec(format_.encode(encoded({"order": {"id": 7}})))
    assert event["fields"] == {"order.id": "7"}
    assert format_.headers == {"X-Splunk-Request-Channel": "b0221cd8"}
    assert SplunkEvents().headers == {}
    with pytest.raises(TypeError, match="indexed_fields='a'"):
        SplunkEvents(indexed_fields="a")


def test_splunk_takes_no_empty_event():
    """So that it gets a text instead."""
    [event] = parse_hec(SplunkEvents().encode([Encoded(b"{}", 20, 1.000005)]))
    assert (event["event"], event["time"]) == ("{}", 1.000005)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 7, 10, 11, 14, 16, 99])
@pytest.mark.parametrize("status", [200, 400])
def test_splunk_set_up_wrong_is_no_fault_of_the_events(status, code):
    """An index, a channel or a token that is wrong pauses, whatever the status."""
    failure = _splunk(status, b'{"text":"of the secret abc","code":%d}' % code)
    assert type(failure) is PausedDeliveryError
    assert f"code {code}" in str(failure)
    assert "abc" not in str(failure)


@pytest.mark.parametrize("code", [6, 12, 13, 15])
@pytest.mark.parametrize("status", [200, 400])
def test_splunk_codes_that_speak_of_an_event(status, code):
    """They refuse it."""
    failure = _splunk(status, b'{"text":"of the secret abc","code":%d,"invalid-event-number":0}' % code)
    assert type(failure) is PermanentDeliveryError
    assert "abc" not in str(failure)


@pytest.mark.parametrize("code", [8, 9, 23])
@pytest.mark.parametrize("status", [200, 400])
def test_splunk_that_is_busy(status, code):
    """Passes."""
    assert type(_splunk(status, b'{"text":"Server is busy","code":%d}' % code)) is TemporaryDeliveryError


@pytest.mark.parametrize("body", [b'{"code":"7"}', b"<html>", b"[]", b"{}", b"", b"OK"])
@pytest.mark.parametrize("status", [200, 400])
def test_splunk_answers_without_a_code(status, body):
    """Are somebody else's."""
    assert type(_splunk(status, body)) is PausedDeliveryError


def _splunk(status, body):
    """Return the failure that an answer is."""
    if status == 400:
        return SplunkEvents().refusal(400, {}, body)
    with pytest.raises(DeliveryError) as caught:
        SplunkEvents().read(status, {}, body, encoded(EVENT))
    return caught.value


def test_splunk_success():
    """Is code 0; of other statuses than 2xx and 400 the status says enough."""
    assert SplunkEvents().read(200, {}, b'{"text":"Success","code":0,"ackId":7}', encoded(EVENT)) is None
    assert SplunkEvents().refusal(503, {}, b'{"code":9}') is None


# -- Answers of somebody else


@pytest.mark.parametrize(
    "format_",
    [OTLPLogs(), LokiStreams(), ElasticsearchBulk(), SplunkEvents(), DatadogLogs(), GELFMessage()],
    ids=lambda format_: type(format_).__name__,
)
@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_page_is_no_success(format_, status):
    """A login page, say, is the set-up's fault, told with its title; no event is delivered by it."""
    page = b"<!DOCTYPE html>\n<html><head><title>Sign in to the shop</title></head></html>"
    for headers in ({"content-type": "text/html; charset=utf-8"}, {}):
        with pytest.raises(PausedDeliveryError, match="not the collector's but a page, “Sign in to the shop”"):
            format_.read(status, headers, page, encoded(EVENT))
    with pytest.raises(PausedDeliveryError, match="not the collector's but"):
        format_.read(status, {"Content-Type": "text/html"}, b"<p>hello", encoded(EVENT))


# -- Datadog


def test_datadog_logs_have_its_standard_attributes():
    """Message, status, time, logger and ids by Datadog's names, with what is the same for all."""
    format_ = DatadogLogs(service="shop", hostname="h", tags={"env": "prod", "version": "1"})
    [log] = parse_datadog(format_.encode(encoded(EVENT)))
    assert log == {
        "ddsource": "python",
        "ddtags": "env:prod,version:1",
        "hostname": "h",
        "service": "shop",
        "message": "stock is low",
        "timestamp": TIME,
        "status": "warning",
        "logger": {"name": "shop.orders"},
        "dd": {"trace_id": str(int(TRACE[16:], 16)), "span_id": str(int(SPAN, 16))},
        "trace_id": TRACE,
        "span_id": SPAN,
        "item": "bolt M4",
        "left": 3,
    }


def test_datadog_exceptions_and_odd_fields():
    """Exceptions are errors; an event's own service wins; names that are taken give way."""
    failure, text = raised()
    event = {"event": "x", "service": "mine", "status": 200, **failure, "level": 40, "timestamp": "x"}
    [log] = parse_datadog(DatadogLogs(service="shop", tags=["a:b", "c"]).encode(encoded(event)))
    assert log.pop("timestamp") != "x"
    assert log == {
        "ddsource": "python",
        "ddtags": "a:b,c",
        "service": "mine",
        "message": "x",
        "status": "error",
        "error": {"stack": text, "kind": "ValueError", "message": "first\nsecond"},
        "status_": 200,
        "timestamp_": "x",
    }
    [log] = parse_datadog(DatadogLogs().encode(encoded({"level": ["odd"]})))
    assert (log["status"], log["level"]) == ("notice", ["odd"])
    [log] = parse_datadog(DatadogLogs().encode(encoded({"exception": [{"exc_type": "E"}]})))
    assert log["error"]["kind"] == "E"
    assert log["exception"] == [{"exc_type": "E"}]
    [log] = parse_datadog(DatadogLogs(hostname="h").encode(encoded({"message": ["x"], "hostname": 5, "ddtags": None})))
    assert (log["message"], log["hostname"], "ddtags" in log) == ('["x"]', "5", False)
    with pytest.raises(TypeError, match="tags='a:b'"):
        DatadogLogs(tags="a:b")


def test_datadog_takes_a_thousand():
    """A batch of more is refused here, so that the delivery halves it."""
    items = encoded({"event": "x"}) * 1000
    assert len(parse_datadog(DatadogLogs().encode(items))) == 1000
    with pytest.raises(OversizeDeliveryError, match="1001"):
        DatadogLogs().encode([*items, items[0]])


def test_datadog_shortens_what_it_would_cut():
    """A log of more than a megabyte stays JSON, and says that something is missing."""
    [log] = parse_datadog(DatadogLogs(service="shop").encode(encoded({"event": "x" * 1_200_000, "order": 7})))
    assert len(json.dumps(log)) <= 1_000_100
    assert len(log["message"]) > 900_000
    assert (log["truncated"], log["order"], log["service"]) == (True, 7, "shop")


# -- Graylog


def test_gelf_messages():
    """Level as a syslog severity, exact time, all other fields with an underscore."""
    message = parse_gelf(GELFMessage(host="web-1").encode(encoded(EVENT)))
    assert message == {
        "version": "1.1",
        "host": "web-1",
        "short_message": "stock is low",
        "timestamp": 1773500966.535897,
        "level": 4,
        "_level_name": "warning",
        "_logger": "shop.orders",
        "_trace_id": TRACE,
        "_span_id": SPAN,
        "_item": "bolt M4",
        "_left": 3,
    }


def test_gelf_odd_fields():
    """Names are made such that they may stand there; values are text or numbers; none is lost."""
    event = {
        "id": 5,
        "a b": 1,
        "a_b": 2,
        "ok": True,
        "nest": {"x": [1]},
        "none": None,
        "large": 2**70,
        "half": 0.5,
        "timestamp": "never",
        "level": ["odd"],
        "level_number": 30,
    }
    message = parse_gelf(GELFMessage().encode(encoded(event)))
    for name in ("version", "timestamp"):
        message.pop(name)
    assert message.pop("host")
    assert message == {
        "short_message": "-",
        "level": 4,
        "_level_name": "warning",
        "_id_": 5,
        "_a_b": 1,
        "_a_b_": 2,
        "_ok": "true",
        "_nest": '{"x":[1]}',
        "_large": str(2**70),
        "_half": 0.5,
        "_timestamp_": "never",
    }


@pytest.mark.parametrize("text", ["", " ", None])
def test_gelf_always_has_a_short_message(text):
    """Graylog takes none without."""
    assert parse_gelf(GELFMessage().encode(encoded({"event": text})))["short_message"] == "-"


def test_gelf_level_that_nobody_knows():
    """Is a notice, with the name it came with, if it has one."""
    message = parse_gelf(GELFMessage().encode(encoded({"level": "odd"})))
    assert (message["level"], message["_level_name"]) == (5, "odd")
    message = parse_gelf(GELFMessage().encode([Encoded(b"{}", math.inf, 1.0)]))
    assert (message["level"], "_level_name" in message) == (5, False)


def test_gelf_long_message():
    """Has the message, the traceback and the stack, which then are no fields of their own."""
    failure, text = raised()
    message = parse_gelf(GELFMessage().encode(encoded({"event": "x", **failure, "stack": "Stack"})))
    assert message["full_message"] == f"x\n\n{text}\n\nStack"
    assert (message["_exception_type"], message["_exception_message"]) == ("ValueError", "first\nsecond")
    assert not message.keys() & {"_exception", "_stack"}
    message = parse_gelf(GELFMessage().encode(encoded({"event": "x", "exception": [{"exc_type": "E"}]})))
    assert message["full_message"] == "x\n\nE: None"
    assert message["_exception"] == '[{"exc_type":"E"}]'


def test_gelf_is_one_event_a_request_unless_the_input_takes_many():
    """With bulk, each message is a line."""
    assert GELFMessage().single is True
    many = GELFMessage(bulk=True)
    assert many.single is False
    lines = many.encode(encoded({"event": "1"}, {"event": "a\nb"})).split(b"\n")
    assert [parse_gelf(line)["short_message"] for line in lines] == ["1", "a\nb"]


# -- Any event

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text()
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.none() | st.just(dt.timezone.utc))
    | st.sampled_from([TRACE, SPAN, int(TRACE, 16), TIME, "ValueError: x"])
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
_NAMES = st.text() | st.sampled_from(
    [
        *("timestamp", "@timestamp", "level", "level_number", "event", "logger", "exception", "stack", "trace_id"),
        *("span_id", "trace_flags", "service", "message", "status", "id", "error", "dd", "host", "lineno", "thread"),
    ]
)
_EVENTS = st.lists(st.dictionaries(_NAMES, _VALUES, max_size=8), min_size=1, max_size=5)


@given(_EVENTS)
def test_any_event_gives_bodies_that_parsers_take(events):
    """Whatever is in them, each collector's parser takes all of them."""
    items = encoded(*events)
    made = parse_otlp(OTLPLogs({"service.name": "x"}).encode(items))
    assert sum(len(scope.log_records) for scope in made.resource_logs[0].scope_logs) == len(items)
    entries = parse_loki(LokiStreams({}, label_fields={"level": "level", "who": "logger"}).encode(items))
    assert Counter(line for _, _, line, _ in entries) == Counter(item.data.decode() for item in items)
    for ecs in (True, False):
        assert len(parse_bulk(ElasticsearchBulk(ecs=ecs).encode(Batch(items)))) == len(items)
    assert len(parse_hec(SplunkEvents(indexed_fields=["event", "level", "x"]).encode(items))) == len(items)
    assert len(parse_datadog(DatadogLogs(service="x").encode(items))) == len(items)
    for item in items:
        parse_gelf(GELFMessage().encode([item]))


@given(_EVENTS)
def test_short_cuts_change_nothing(events):
    """What is usual takes a shorter way to the same body."""
    usual = {"event": "made", "level": "info", "logger": "shop"}
    items = Batch(encoded(*events, *(usual | event for event in events), *(event | usual for event in events)), "key")
    for make in (
        lambda: OTLPLogs({"service.name": "x"}),
        lambda: ElasticsearchBulk(ecs=True),
        lambda: ElasticsearchBulk(ecs=False),
        lambda: LokiStreams({"a": "b"}, label_fields={"level": "level", "who": "logger"}),
    ):
        short = make().encode(items)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Placement, "usual", lambda *_: None)
            patch.setattr(LokiStreams, "_needs_event", lambda *_: True)
            long = make().encode(items)
        if b'"streams"' in short:
            assert parse_loki(short) == parse_loki(long)
        else:
            assert [json.loads(line) for line in short.splitlines()] == [json.loads(line) for line in long.splitlines()]


@given(st.binary(max_size=60))
def test_any_data_gives_bodies_that_parsers_take(data):
    """Text that somebody else rendered, and a spool's damaged line, are events too."""
    items = [Encoded(data, 20, 1773500966.0)]
    parse_otlp(OTLPLogs().encode(items))
    parse_loki(LokiStreams().encode(items))
    parse_bulk(ElasticsearchBulk().encode(items))
    parse_hec(SplunkEvents().encode(items))
    parse_datadog(DatadogLogs().encode(items))
    parse_gelf(GELFMessage().encode(items))


def test_the_doubles_refuse_what_the_real_ones_refuse():
    """Else nothing above would mean anything."""
    line = b'{"create":{}}\n{"@timestamp":"2020-01-01T00:00:00Z"}'
    for parse, body in [
        (parse_bulk, line),
        (parse_bulk, b'{"index":{}}\n{}\n'),
        (parse_otlp, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"noValue":1}}]}]}]}'),
        (parse_otlp, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":5}]}]}]}'),
        (parse_otlp, b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"q83v"}]}]}]}'),
        (parse_loki, b'{"streams":[{"stream":{},"values":[["1","x"]]}]}'),
        (parse_loki, b'{"streams":[{"stream":{"a":"b"},"values":[[1,"x"]]}]}'),
        (parse_loki, b'{"streams":[{"stream":{"a":"b"},"values":[["1","x",{"a":1}]]}]}'),
        (parse_hec, b'{"time":1,"event":""}'),
        (parse_hec, b'{"time":1,"event":"x","fields":{"a":1}}'),
        (parse_datadog, b"[" + b",".join([b'{"timestamp":"2020-01-01T00:00:00Z"}'] * 1001) + b"]"),
        (parse_gelf, b'{"version":"1.1","host":"h","short_message":"","timestamp":1,"level":1}'),
        (parse_gelf, b'{"version":"1.1","host":"h","short_message":"x","timestamp":1,"level":1,"_a":true}'),
    ]:
        with pytest.raises(Refused):
            parse(body)
    parse_bulk(line + b"\n")
