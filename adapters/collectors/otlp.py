"""OpenTelemetry: `OTLPLogs`, log records over OTLP/HTTP as JSON or Protocol Buffers, and `otlp_sink`."""

from __future__ import annotations

import base64
import contextlib
import math
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import unquote

import orjson

from outfall.adapters.collectors.answers import Answer, CollectorFormat, parsed
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import dump, take_exception, take_ids, take_level, take_time
from outfall.adapters.collectors.otlp_protobuf import CONTENT_TYPE, Messages
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.core.arguments import checked_choice
from outfall.sinks.core.item import BatchResult, TypedEncoded
from outfall.sinks.event.event import message_key
from outfall.sinks.http.answers import header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.spool.sink import SpoolSink

#: The encodings of log records.
Encoding = Literal["json", "protobuf"]

_DEFAULT_ENDPOINT, _PATH = "http://localhost:4318", "/v1/logs"
_OTHER_PATHS = ("/v1/traces", "/v1/metrics", "/v1development/profiles")
_CONNECT_SECONDS = 3.05

_MAX_FLAGS = 2**32 - 1
#: Deeper values are sent as JSON text. Each level of an event makes three levels of messages, and parsers of Protocol
#: Buffers accept 100.
_MAX_DEPTH = 16

#: SeverityNumber by the tens of a level number: DEBUG, INFO, WARN, ERROR, FATAL. Levels between two get one more.
_SEVERITIES = {1: 5, 2: 9, 3: 13, 4: 17, 5: 21}
_TRACE, _FATAL2 = 1, 22

#: Infinities in the JSON format of Protocol Buffers.
_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}

#: The attributes for fields of structlog's CallsiteParameterAdder, with the types of their values.
_CALLSITE: dict[str, tuple[str, type]] = {
    "pathname": ("code.file.path", str),
    "func_name": ("code.function.name", str),
    "lineno": ("code.line.number", int),
    "thread": ("thread.id", int),
    "thread_name": ("thread.name", str),
}


class OTLPLogs(CollectorFormat):
    """Encode events as log records of the OpenTelemetry protocol, OTLP/HTTP with JSON or Protocol Buffers.

    ==========================  =====================================================================================
    ``event``                   ``body``
    level                       ``severityNumber``, and ``severityText`` as in the event
    ``timestamp``               ``timeUnixNano``, with all its digits; ``observedTimeUnixNano``
    ``logger``                  the name of the scope; records are grouped by it
    ``trace_id``, ``span_id``   ``traceId``, ``spanId``, if they are such ids, as hexadecimal text or numbers
    ``trace_flags``             ``flags``
    ``exception``               the attributes ``exception.type``, ``exception.message``, ``exception.stacktrace``
    call-site fields            ``code.file.path``, ``code.function.name``, ``code.line.number``, ``thread.id``,
                                ``thread.name``
    all others                  attributes of their own type; ``_`` is added to a name that is taken, or that has other
                                names below it, and an empty name is ``_``
    ==========================  =====================================================================================

    Integers beyond 64 bits become text, and values nested deeper than 16 levels become JSON as text. Bytes, NaN and the
    infinities keep their types while an event waits in memory; in a `SpoolSink`, which stores JSON, they become text
    and null.

    Args:
        resource: Attributes of the resource, such as ``{"service.name": "shop"}``: text, numbers, booleans, bytes, and
            lists and mappings of these. Default None: none.
        encoding: ``"json"`` (default), or ``"protobuf"``, which needs the extra ``otel``. Both have the same contents.

    Raises:
        TypeError: If *resource* is not a mapping, or a name in it is not text.
        ValueError: If *encoding* is neither.
        MissingDependencyError: For ``encoding="protobuf"`` without opentelemetry-proto.

    A collector that takes a part of a batch (``partialSuccess``) says how many records it refused, but not which. They
    count as refused, and nothing is sent again.

    Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp,
    https://opentelemetry.io/docs/specs/otel/logs/data-model/ and
    https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-logs/
    """

    keeps_types = True

    def __init__(self, resource: Mapping[str, Any] | None = None, *, encoding: Encoding = "json") -> None:
        self.encoding: Encoding = checked_choice(encoding, "encoding", ("json", "protobuf"))
        self._messages = Messages() if encoding == "protobuf" else None
        super().__init__(content_type="application/json" if self._messages is None else CONTENT_TYPE)
        self.resource: Mapping[str, Any] = _checked_resource(resource)
        self._attributes = _key_values(self.resource)
        self._resource = orjson.Fragment(dump({"attributes": self._attributes}))

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as an ``ExportLogsServiceRequest``."""
        scopes: dict[str, list[Any]] = {}
        protobuf = self._messages is not None
        for item in batch:
            usual = None if isinstance(item, TypedEncoded) else _placement.usual(item.data)
            event = item.event if usual is None else usual
            logger = event.pop("logger", None)
            if logger is not None and not isinstance(logger, str):
                event["logger"], logger = logger, None
            # JSON without a backslash has no escapes, so its text can be copied.
            bare = usual is not None and not protobuf and b"\\" not in item.data
            record: Any = _written_record(item, event) if bare else None
            if record is None:
                record = _record(item, event, usual=usual is not None, bare=bare)
            scopes.setdefault(logger or "", []).append(record)
        if self._messages is not None:
            return self._messages.request(self._attributes, scopes)
        return orjson.dumps(
            {
                "resourceLogs": [
                    {
                        "resource": self._resource,
                        "scopeLogs": [
                            {"scope": {"name": name} if name else {}, "logRecords": records}
                            for name, records in scopes.items()
                        ],
                    }
                ]
            }
        )

    def _outcome(self, answer: Answer, batch: Sequence[Encoded]) -> BatchResult | None:
        rejected = 0
        # By the response's own type: some servers respond in JSON whatever they get.
        if "protobuf" in (header(answer.headers, "content-type") or "").lower():
            rejected = 0 if self._messages is None else self._messages.rejected(answer.body)
        else:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                rejected = int(parsed(answer.body)["partialSuccess"]["rejectedLogRecords"])
        if rejected <= 0:
            return None
        if rejected >= len(batch):
            # All were refused, so the indexes are known.
            return BatchResult(rejected=dict.fromkeys(range(len(batch)), "the collector refused the whole batch"))
        return BatchResult(rejected_unknown=rejected)


def _checked_resource(resource: Any) -> dict[str, Any]:
    if resource is None:
        return {}
    if not isinstance(resource, Mapping):
        msg = f"resource={resource!r} is not a mapping of attributes, such as {{'service.name': 'shop'}}"
        raise TypeError(msg)
    for name in resource:
        if not isinstance(name, str):
            msg = f"resource={resource!r}: the name {name!r} is not text"
            raise TypeError(msg)
    return dict(resource)


def _record(item: Encoded, event: dict[str, Any], *, usual: bool, bare: bool) -> dict[str, Any]:
    when = str(take_time(item, event))
    record: dict[str, Any] = {
        "timeUnixNano": when,
        "observedTimeUnixNano": when,
        "severityNumber": severity_number(item.level),
    }
    level = take_level(item, event)
    if level is not None:
        record["severityText"] = level
    if "trace_id" in event or "span_id" in event:
        record |= take_ids(event, "traceId", "spanId")
    if "trace_flags" in event and (flags := _flags(event["trace_flags"])) is not None:
        record["flags"] = flags
        del event["trace_flags"]
    message = message_key(event)
    if message in event:
        said = event.pop(message)
        record["body"] = {"stringValue": said} if type(said) is str else any_value(said)
    made: dict[str, Any] = {}
    if "exception" in event:
        made |= take_exception(event, kind="exception.type", message="exception.message", stack="exception.stacktrace")
    if not _CALLSITE.keys().isdisjoint(event):
        for field, (name, kind) in _CALLSITE.items():
            if type(event.get(field)) is kind and name not in event:
                made[name] = event.pop(field)
    if not usual:
        event = _placement.beside(made, event)
    elif made:
        event = made | event
    record["attributes"] = orjson.Fragment(_written(event)) if bare else _key_values(event)
    return record


#: Fields that only `_record` supports.
_RARE = frozenset({"exception", "level_number", "trace_flags", *_CALLSITE})


def _written_record(item: Encoded, event: dict[str, Any]) -> orjson.Fragment | None:
    """Return the JSON of a usual event's `_record`, at two thirds of the cost; None if only `_record` can make it."""
    message, level = event.get("event"), event.get("level")
    if type(message) is not str or type(level) is not str or not _RARE.isdisjoint(event):
        return None
    when = take_time(item, event)
    del event["event"], event["level"]
    ids = ""
    if "trace_id" in event or "span_id" in event:
        ids = "".join(f',"{name}":"{identity}"' for name, identity in take_ids(event, "traceId", "spanId").items())
    return orjson.Fragment(
        f'{{"timeUnixNano":"{when}","observedTimeUnixNano":"{when}","severityNumber":{severity_number(item.level)},'
        f'"severityText":"{level}"{ids},"body":{{"stringValue":"{message}"}},"attributes":{_written(event)}}}'
    )


def _written(fields: Mapping[str, Any]) -> str:
    """Return the JSON of `_key_values`, at half the cost, for usual fields that need no escapes."""
    made = [
        f'{{"key":"{name}","value":{{"stringValue":"{value}"}}}}'
        if (kind := type(value)) is str
        else f'{{"key":"{name}","value":{{"intValue":"{value}"}}}}'
        if kind is int
        else f'{{"key":"{name}","value":{{"doubleValue":{value!r}}}}}'
        if kind is float
        else f'{{"key":"{name}","value":{_OTHERS[value]}}}'
        for name, value in fields.items()
    ]
    return f"[{','.join(made)}]"


_OTHERS = {None: "{}", True: '{"boolValue":true}', False: '{"boolValue":false}'}

#: Names of attributes have to be unique and not empty, and backends take dots in them for nesting.
_placement = Placement(objects=("exception",), deepest=10**6)


@lru_cache(maxsize=256)
def severity_number(level: float) -> int:
    """Return the SeverityNumber of a level number; 0 (unspecified) for an unknown level."""
    if level == math.inf:
        return 0
    tens = int(level // 10)
    if tens < 1:
        return _TRACE
    return _SEVERITIES[tens] + bool(level % 10) if tens in _SEVERITIES else _FATAL2


def _flags(value: object) -> int | None:
    if isinstance(value, str):
        try:
            value = int(value, 16)
        except ValueError:
            return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_FLAGS:
        return value
    return None


def any_value(value: object, depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """Return *value* as an ``AnyValue``, which has the value under its type; None gives an empty one."""
    made: dict[str, Any]
    if isinstance(value, str):
        made = {"stringValue": value}
    elif isinstance(value, bool):
        made = {"boolValue": value}
    elif isinstance(value, int):
        # Integers are sent as text, since many JSON parsers read numbers as floats.
        made = {"intValue" if -(2**63) <= value < 2**63 else "stringValue": str(value)}
    elif isinstance(value, float):
        made = {"doubleValue": value if math.isfinite(value) else _NOT_FINITE.get(value, "NaN")}
    elif value is None:
        made = {}
    elif isinstance(value, (bytes, bytearray)):
        made = {"bytesValue": base64.b64encode(value).decode()}
    elif isinstance(value, (list, tuple, Mapping)) and depth == 0:
        made = {"stringValue": dump(value).decode()}
    elif isinstance(value, (list, tuple)):
        made = {"arrayValue": {"values": [any_value(item, depth - 1) for item in value]}}
    elif isinstance(value, Mapping):
        made = {"kvlistValue": {"values": _key_values(value, depth - 1)}}
    else:
        made = {"stringValue": str(value)}
    return made


def _key_values(fields: Mapping[str, Any], depth: int = _MAX_DEPTH) -> list[dict[str, Any]]:
    return [
        {"key": str(name), "value": {"stringValue": value} if type(value) is str else any_value(value, depth)}
        for name, value in fields.items()
    ]


@overload
def otlp_sink(
    endpoint: str | None = ...,
    *,
    resource: Mapping[str, Any] | None = ...,
    encoding: Literal["json", "protobuf"] | None = ...,
    spool: None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink: ...
@overload
def otlp_sink(
    endpoint: str | None = ...,
    *,
    resource: Mapping[str, Any] | None = ...,
    encoding: Literal["json", "protobuf"] | None = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[TokenOptions],
) -> SpoolSink: ...
def otlp_sink(
    endpoint: str | None = None,
    *,
    resource: Mapping[str, Any] | None = None,
    encoding: Literal["json", "protobuf"] | None = None,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to an OpenTelemetry collector in the background, over OTLP/HTTP.

    Missing arguments are taken from the environment variables that OpenTelemetry defines. A variable with ``_LOGS_``
    takes precedence over the general one.

    ==========================================  =======================================================================
    ``OTEL_EXPORTER_OTLP_ENDPOINT``             *endpoint*; ``/v1/logs`` is added
    ``OTEL_EXPORTER_OTLP_LOGS_ENDPOINT``        *endpoint*, unchanged
    ``OTEL_EXPORTER_OTLP[_LOGS]_HEADERS``       ``headers``, as ``name=value,…`` with percent-encoding; the argument
                                                overrides them
    ``OTEL_EXPORTER_OTLP[_LOGS]_TIMEOUT``       ``timeout``, in milliseconds
    ``OTEL_EXPORTER_OTLP[_LOGS]_COMPRESSION``   ``compression``, ``gzip`` or ``none``
    ``OTEL_EXPORTER_OTLP[_LOGS]_PROTOCOL``      *encoding*, ``http/json`` or ``http/protobuf``
    ``OTEL_EXPORTER_OTLP[_LOGS]_CERTIFICATE``   ``verify``, a file
    ``OTEL_EXPORTER_OTLP[_LOGS]_CLIENT_…``      ``cert``, the files ``CERTIFICATE`` and ``KEY``
    ``OTEL_SERVICE_NAME``                       ``service.name`` of *resource*
    ``OTEL_RESOURCE_ATTRIBUTES``                *resource*, as ``name=value,…`` with percent-encoding
    ==========================================  =======================================================================

    Args:
        endpoint: The collector's URL; ``/v1/logs`` is added unless it is there. Default None: that of the environment,
            else ``"http://localhost:4318"``.
        resource: Attributes of the resource. Without a ``service.name`` it gets ``"unknown_service:"`` and the
            program's name. Default None: those of the environment.
        encoding: ``"json"``, or ``"protobuf"``, which needs the extra ``otel``. Default None: that of the environment,
            else JSON.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If a variable has an invalid value, the environment's endpoint is for gRPC
            (``OTEL_EXPORTER_OTLP_PROTOCOL``), or a sink refuses an argument.
        TypeError: If an argument is unknown or has the wrong type.
        MissingDependencyError: For Protocol Buffers without opentelemetry-proto.

    The timeout's variable is in milliseconds, as specified; OpenTelemetry's SDK for Python takes it for seconds.

    Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/,
    https://opentelemetry.io/docs/languages/sdk-configuration/otlp-exporter/ and
    https://opentelemetry.io/docs/specs/otel/resource/sdk/
    """
    own = _checked_resource(resource)
    url = _endpoint_of_environment() if endpoint is None else with_path(endpoint, _PATH, others=_OTHER_PATHS)
    given = _options_of_environment()
    headers = given.pop("headers", {})
    options.setdefault("name", "otlp")
    body = OTLPLogs(_resource_of_environment() | own, encoding=encoding or _encoding_of_environment())
    return shipped(otlp_sink, url, body, given | options, spool=spool, headers=headers)


def _environment(name: str) -> tuple[str, str | None]:
    """Return the effective variable, that for logs or the general one, and its value; an empty one counts as unset."""
    own, general = f"OTEL_EXPORTER_OTLP_LOGS_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    value = os.environ.get(own)
    return (own, value) if value else (general, os.environ.get(general) or None)


def _endpoint_of_environment() -> str:
    variable, url = _environment("ENDPOINT")
    if url is None:
        return _DEFAULT_ENDPOINT + _PATH
    protocol_variable, protocol = _environment("PROTOCOL")
    if protocol == "grpc":
        msg = f"{protocol_variable}='grpc': {variable} is an endpoint for gRPC; give one for HTTP, as endpoint="
        raise ValueError(msg)
    return url if "_LOGS_" in variable else with_path(url, _PATH)


def _encoding_of_environment() -> Encoding:
    variable, protocol = _environment("PROTOCOL")
    # "grpc" is accepted here: the endpoint is given as an argument, and is for HTTP.
    encodings: dict[str | None, Encoding] = {
        None: "json",
        "grpc": "json",
        "http/json": "json",
        "http/protobuf": "protobuf",
    }
    if protocol not in encodings:
        msg = f"{variable}={protocol!r} is none of 'http/json', 'http/protobuf', 'grpc'"
        raise ValueError(msg)
    return encodings[protocol]


def _options_of_environment() -> dict[str, Any]:
    options: dict[str, Any] = {}
    variable, headers = _environment("HEADERS")
    if headers is not None:
        options["headers"] = _pairs(variable, headers)
    variable, timeout = _environment("TIMEOUT")
    if timeout is not None:
        if not (timeout.isascii() and timeout.isdigit() and int(timeout)):
            msg = f"{variable}={timeout!r} is not a number of milliseconds"
            raise ValueError(msg)
        seconds = int(timeout) / 1_000
        options["timeout"] = (min(_CONNECT_SECONDS, seconds), seconds)
    variable, compression = _environment("COMPRESSION")
    if compression not in (None, "none"):
        if compression != "gzip":
            msg = f"{variable}={compression!r} is neither 'gzip' nor 'none'"
            raise ValueError(msg)
        options["compression"] = compression
    _, certificate = _environment("CERTIFICATE")
    if certificate is not None:
        options["verify"] = certificate
    _, client = _environment("CLIENT_CERTIFICATE")
    _, key = _environment("CLIENT_KEY")
    if client is not None:
        options["cert"] = client if key is None else (client, key)
    return options


def _resource_of_environment() -> dict[str, Any]:
    variable = "OTEL_RESOURCE_ATTRIBUTES"
    program = os.path.basename(sys.executable or "python")
    found = {"service.name": f"unknown_service:{program}"} | _pairs(variable, os.environ.get(variable, ""))
    name = os.environ.get("OTEL_SERVICE_NAME")
    return found | {"service.name": name} if name else found


def _pairs(variable: str, text: str) -> dict[str, str]:
    """Return the pairs of a list ``name=value,…``, as W3C's Baggage has it."""
    pairs: dict[str, str] = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        name, equals, value = pair.partition("=")
        name = unquote(name.strip())
        if not name or not equals:
            # The value may be a secret.
            msg = f"{variable} is not a list of name=value with commas between"
            raise ValueError(msg)
        pairs[name] = unquote(value.strip())
    return pairs
