"""Collectors on loopback that check what the published APIs say, and answer as they say."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from tests.sinks._http import Answer, Server

if TYPE_CHECKING:
    from tests.sinks._http import Request


class Refused(Exception):
    """The request is wrong.

    Args:
        status: What the collector answers.
        body: The same.
    """

    def __init__(self, status: int, body: Any = "") -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def need(what: object, told: Any, status: int = 400) -> None:
    """Refuse the request unless *what* holds."""
    if not what:
        raise Refused(status, told)


def _parsed(body: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise Refused(400, f"{constant} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), f"a key comes twice: {[name for name, _ in pairs]}")
        return dict(pairs)

    try:
        return json.loads(body, parse_constant=refuse, object_pairs_hook=unique)
    except ValueError as error:
        raise Refused(400, f"{error}: {body[:300]!r}") from None


class Collector(Server):
    """A collector: `received` has what it took, oldest first.

    Args:
        path: The path that requests must come to.
        content_types: Those it takes.
        headers: What requests must have, by lower-case name; anything else is answered 403.
    """

    path = "/"
    content_types = ("application/json",)

    def __init__(self, headers: dict[str, str] | None = None, **options: Any) -> None:
        self.received: list[Any] = []
        #: What was wrong with requests.
        self.refusals: list[Refused] = []
        self._needed = headers or {}
        super().__init__(self._receive, **options)

    def _receive(self, request: Request) -> Answer:
        try:
            need(request.method == "POST", "POST only", 405)
            need(request.path == self.path, f"no such path: {request.path}", 404)
            need(request.headers.get("content-type", "").split(";")[0] in self.content_types, "content type", 415)
            for name, value in self._needed.items():
                need(request.headers.get(name) == value, f"{name}: {request.headers.get(name)}", 403)
            return self.take(request)
        except Refused as refused:
            self.refusals.append(refused)
            return Answer(refused.status, refused.body)

    def take(self, request: Request) -> Answer:
        """Take what came, and answer."""
        raise NotImplementedError


# -- OpenTelemetry

_HEX = re.compile(r"[0-9a-fA-F]+")
_ENUMS, _TEXTS_OF_64_BITS = {"severityNumber"}, {"timeUnixNano", "observedTimeUnixNano", "intValue"}


def _checked(value: Any, key: str = "") -> Any:
    """Return *value* as the JSON of Protocol Buffers has it."""
    if isinstance(value, dict):
        return {name: _checked(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_checked(each, key) for each in value]
    if key in {"traceId", "spanId"}:
        # Hexadecimal in OTLP, base64 in the JSON of Protocol Buffers.
        digits = 32 if key == "traceId" else 16
        need(_HEX.fullmatch(value) and len(value) == digits and value.strip("0"), f"{key}: {value}")
        return base64.b64encode(bytes.fromhex(value)).decode()
    if key in _ENUMS:
        need(isinstance(value, int), f"{key}: {value!r} is no number")
    if key in _TEXTS_OF_64_BITS:
        need(isinstance(value, str), f"{key}: {value!r} is no text")
    return value


def parse_otlp(body: bytes) -> ExportLogsServiceRequest:
    """Return the request, with all that its JSON may not be refused."""
    try:
        made = json_format.ParseDict(_checked(_parsed(body)), ExportLogsServiceRequest())
    except json_format.ParseError as error:
        raise Refused(400, str(error)) from None
    scopes = [scope for resource in made.resource_logs for scope in resource.scope_logs]
    need(all(scope.log_records for scope in scopes), "an empty scope")
    for record in [record for scope in scopes for record in scope.log_records]:
        names = [attribute.key for attribute in record.attributes]
        need(len(set(names)) == len(names), f"attributes are not unique: {names}")
        need(0 <= record.severity_number <= 24, f"severity {record.severity_number}")
    return made


class OTLPCollector(Collector):
    """Of https://opentelemetry.io/docs/specs/otlp/#otlphttp; `received` has log records with their scope's name."""

    path = "/v1/logs"
    content_types = ("application/json", "application/x-protobuf")
    #: How many records of each request it says it refused.
    rejects = 0

    def take(self, request: Request) -> Answer:
        """Parse with the real classes."""
        binary = request.headers["content-type"] == "application/x-protobuf"
        made = ExportLogsServiceRequest.FromString(request.body) if binary else parse_otlp(request.body)
        self.resources = [each.resource for each in made.resource_logs]
        for resource in made.resource_logs:
            for scope in resource.scope_logs:
                self.received += [(scope.scope.name, record) for record in scope.log_records]
        partial = {"partialSuccess": {"rejectedLogRecords": str(self.rejects), "errorMessage": "too old"}}
        if binary:
            answer = json_format.ParseDict(partial if self.rejects else {}, ExportLogsServiceResponse())
            return Answer(200, answer.SerializeToString(), {"Content-Type": "application/x-protobuf"})
        return Answer(200, partial if self.rejects else {})


# -- Loki

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def parse_loki(body: bytes) -> list[tuple[dict[str, str], int, str, dict[str, str]]]:
    """Return labels, nanoseconds, line and structured metadata of each entry, in the order of the body."""
    entries = []
    streams = _parsed(body).get("streams")
    need(isinstance(streams, list) and streams, "no streams")
    seen = set()
    for stream in streams:
        labels = stream.get("stream")
        need(isinstance(labels, dict) and labels, "error at least one label pair is required per stream")
        need(len(labels) <= 15, "max label names")
        for name, value in labels.items():
            need(_LABEL.fullmatch(name), f"the name of a label: {name!r}")
            need(isinstance(value, str) and value, f"the value of a label: {value!r}")
            need(len(value.encode()) <= 2048, "the value of a label is too long")
        key = tuple(sorted(labels.items()))
        need(key not in seen, f"the stream comes twice: {labels}")
        seen.add(key)
        need(isinstance(stream.get("values"), list) and stream["values"], "no values")
        for entry in stream["values"]:
            need(len(entry) in (2, 3), f"an entry of {len(entry)}")
            when, line = entry[:2]
            need(isinstance(when, str) and when.isdigit() and int(when) < 2**63, f"the time {when!r}")
            need(isinstance(line, str), "the line is no text")
            metadata = entry[2] if len(entry) == 3 else {}
            need(
                isinstance(metadata, dict)
                and all(_LABEL.fullmatch(name) and isinstance(value, str) for name, value in metadata.items()),
                f"structured metadata {metadata}",
            )
            entries.append((labels, int(when), line, metadata))
    return entries


class LokiCollector(Collector):
    """Of https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs."""

    path = "/loki/api/v1/push"
    blocked = False

    def take(self, request: Request) -> Answer:
        """Parse, and answer 204; or 260, where ingestion is blocked."""
        if self.blocked:
            return Answer(260, "ingestion blocked for user fake")
        self.received += parse_loki(request.body)
        return Answer(204)


# -- Elasticsearch

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def parse_bulk(body: bytes) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return action and document of each pair of lines."""
    need(body.endswith(b"\n"), {"error": {"reason": "The bulk request must be terminated by a newline [\\n]"}})
    lines = body.split(b"\n")[:-1]
    need(len(lines) % 2 == 0, {"error": {"reason": "an action without its document"}})
    pairs = []
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        made = _parsed(action)
        need(list(made) == ["create"], {"error": {"reason": "only op_type of create are allowed in data streams"}})
        need(made["create"].keys() <= {"_id"}, {"error": {"reason": f"Action/metadata line {made}"}})
        source = _parsed(document)
        need(isinstance(source, dict), {"error": {"reason": "the document is no object"}})
        pairs.append((made["create"], source))
    return pairs


class ElasticsearchCollector(Collector):
    """Of https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk, for a data stream.

    `statuses` are what the next documents are answered with, in turn; then they are taken.
    """

    path = "/logs-shop-default/_bulk"
    content_types = ("application/x-ndjson", "application/json")

    def __init__(self, **options: Any) -> None:
        self.statuses: list[int] = []
        self.ids: set[str] = set()
        super().__init__(**options)

    def take(self, request: Request) -> Answer:
        """Take documents, each with a status of its own."""
        items = [self._one(action, document) for action, document in parse_bulk(request.body)]
        items = [{"create": item} for item in items]
        return Answer(200, {"took": 1, "errors": any("error" in item["create"] for item in items), "items": items})

    def _one(self, action: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        told = {"reason": f"in the document {document}"}
        if self.statuses and (status := self.statuses.pop(0)) >= 300:
            kind = {429: "es_rejected_execution_exception"}.get(status, "some_exception")
            return {"status": status, "error": {"type": kind, **told}}
        if action.get("_id") in self.ids:
            return {"status": 409, "error": {"type": "version_conflict_engine_exception", **told}}
        if not _DATE.fullmatch(str(document.get("@timestamp"))):
            return {"status": 400, "error": {"type": "document_parsing_exception", **told}}
        if "_id" in action:
            self.ids.add(action["_id"])
        self.received.append(document)
        return {"status": 201}


# -- Splunk


_HEC_NAMES = {"time", "host", "source", "sourcetype", "index", "event", "fields"}


def _hec_error(event: Any) -> tuple[int, str] | None:
    time = event.get("time") if isinstance(event, dict) and event.keys() <= _HEC_NAMES else None
    if not isinstance(time, (int, float)) or time < 0:
        return 6, "Invalid data format"
    if event.get("event") is None:
        return 12, "Event field is required"
    if event["event"] in ("", {}):
        return 13, "Event field cannot be blank"
    fields = event.get("fields", {"none": ""})
    if not isinstance(fields, dict) or not all(isinstance(each, (str, list)) for each in fields.values()):
        return 15, "Error in handling indexed fields"
    return None


def parse_hec(body: bytes) -> list[dict[str, Any]]:
    """Return the objects, which follow on each other."""
    decoder = json.JSONDecoder()
    text, at, events = body.decode().rstrip(), 0, []
    while at < len(text):
        try:
            event, at = decoder.raw_decode(text, at)
        except ValueError:
            event = None
        error = _hec_error(event)
        if error is not None:
            raise Refused(400, {"text": error[1], "code": error[0], "invalid-event-number": len(events)})
        events.append(event)
        while text[at : at + 1].isspace():
            at += 1
    need(events, {"text": "No data", "code": 5})
    return events


class SplunkCollector(Collector):
    """Of https://docs.splunk.com/Documentation/Splunk/9.1.1/Data/TroubleshootHTTPEventCollector (the codes).

    Args:
        token: The one that is known.
        indexes: Those that the token may write to.
        acknowledges: True to want a channel.
    """

    path = "/services/collector/event"

    def __init__(self, token: str, *, indexes: tuple[str, ...] = (), acknowledges: bool = False) -> None:
        self.token, self.indexes, self.acknowledges = token, indexes, acknowledges
        super().__init__()

    def take(self, request: Request) -> Answer:
        """Look at the token, then at each event."""
        told = request.headers.get("authorization")
        need(told, {"text": "Token is required", "code": 2}, 401)
        scheme, _, token = str(told).partition(" ")
        need(scheme == "Splunk", {"text": "Invalid authorization", "code": 3}, 401)
        need(token == self.token, {"text": "Invalid token", "code": 4}, 403)
        if self.acknowledges:
            need("x-splunk-request-channel" in request.headers, {"text": "Data channel is missing", "code": 10})
        events = parse_hec(request.body)
        for number, event in enumerate(events):
            known = event.get("index") in (None, *self.indexes)
            need(known, {"text": "Incorrect index", "code": 7, "invalid-event-number": number})
        self.received += events
        return Answer(200, {"text": "Success", "code": 0})


# -- Datadog


def parse_datadog(body: bytes) -> list[dict[str, Any]]:
    """Return the logs."""
    need(len(body) <= 5_000_000, {"errors": [{"detail": "the payload is too large"}]}, 413)
    logs = _parsed(body)
    need(isinstance(logs, list), "no array")
    need(len(logs) <= 1000, {"errors": [{"detail": "too many logs"}]}, 413)
    for log in logs:
        need(isinstance(log, dict), "a log is no object")
        for name in ("message", "status", "service", "hostname", "ddsource", "ddtags"):
            need(isinstance(log.get(name, ""), str), f"{name} is no text")
        need(_DATE.fullmatch(log["timestamp"]), f"the timestamp {log['timestamp']!r}")
        ids = log.get("dd")
        for name in ids if isinstance(ids, dict) else ():
            # Other members of it are somebody's own.
            need(name not in ("trace_id", "span_id") or 0 < int(ids[name]) < 2**64, f"dd: {ids}")
    return logs


class DatadogCollector(Collector):
    """Of https://docs.datadoghq.com/api/latest/logs/#send-logs."""

    path = "/api/v2/logs"

    def take(self, request: Request) -> Answer:
        """Take the logs, and answer 202."""
        self.received += parse_datadog(request.body)
        return Answer(202, {})


# -- Graylog

_ADDITIONAL = re.compile(r"_[\w.\-]*", re.ASCII)


def parse_gelf(body: bytes) -> dict[str, Any]:
    """Return the message."""
    message = _parsed(body)
    need(isinstance(message, dict), "no object")
    need(message.get("version") == "1.1", "version")
    need(isinstance(message.get("host"), str) and message["host"], "host")
    short = message.get("short_message")
    need(isinstance(short, str) and short.strip(), "short_message")
    need(isinstance(message.get("full_message", ""), str), "full_message")
    need(isinstance(message.get("timestamp"), (int, float)), "timestamp")
    need(message.get("level") in range(8), "level")
    for name, value in message.items():
        if name not in {"version", "host", "short_message", "full_message", "timestamp", "level"}:
            need(_ADDITIONAL.fullmatch(name) and name != "_id", f"an additional field: {name!r}")
            need(isinstance(value, (str, int, float)) and not isinstance(value, bool), f"{name}: {value!r}")
    return message


class GELFCollector(Collector):
    """Of https://go2docs.graylog.org/current/getting_in_log_data/gelf_format.html, by HTTP."""

    path = "/gelf"
    bulk = False

    def take(self, request: Request) -> Answer:
        """Take one message, or with `bulk` many, and answer 202."""
        lines = request.body.split(b"\n") if self.bulk else [request.body]
        self.received += [parse_gelf(line) for line in lines]
        return Answer(202)
