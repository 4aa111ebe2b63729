"""Ways to send events to an HTTP collector: by Outfall, by a bare request, and by other libraries.

Each is a context manager that gets the collector's URL. It yields a callable that logs a number of events, and one that
waits until they are sent, if the library has such a function. All libraries are used with their defaults, which means
batches, queues and intervals of very different sizes.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from benchmarks.events import REQUEST_ID, TIMESTAMP, drive, drive_logging
from outfall import NDJSON, BackgroundSink, HTTPSink, OTLPLogs, SinkHandler

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    #: Logs a number of events; waits until they are sent.
    Open = tuple[Callable[[int], object], Callable[[], object]]

#: The number of events in the bare request, and by default in a batch of the sinks.
BATCH = 500


@dataclass(frozen=True)
class Shipper:
    """One way to send events.

    Args:
        name: The name in tables.
        open: Gets the collector's URL.
        part: Only one in so many events of a round is logged, and results are scaled, for ways that take milliseconds
            for each event. Default 1: all.
        patience_seconds: How long nothing may arrive before missing events count as lost. Default 1.
        whole: True if all events have to arrive. Default False.
    """

    name: str
    open: Callable[[str], AbstractContextManager[Open]]
    part: int = 1
    patience_seconds: float = 1.0
    whole: bool = False


@contextmanager
def _requests(url: str) -> Iterator[Open]:
    """One request for 500 events as NDJSON, made by requests in the caller's thread."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        headers = {"Content-Type": "application/x-ndjson"}
        dumps = orjson.dumps

        def post(lines: list[bytes]) -> None:
            lines.append(b"")
            session.post(url, b"\n".join(lines), headers=headers, timeout=30).raise_for_status()

        def log(events: int) -> None:
            lines: list[bytes] = []
            for number in range(events):
                lines.append(
                    dumps(
                        {
                            "timestamp": TIMESTAMP,
                            "level": "info",
                            "logger": "shop.orders",
                            "event": "request finished",
                            "request_id": REQUEST_ID,
                            "method": "GET",
                            "path": "/api/v1/orders",
                            "status": 200,
                            "duration_ms": 12.345,
                            "client": "203.0.113.7",
                            "order_id": number,
                        }
                    )
                )
                if len(lines) == BATCH:
                    post(lines)
                    lines = []
            if lines:
                post(lines)

        yield log, bool


@contextmanager
def _sink(url: str) -> Iterator[Open]:
    with BackgroundSink(HTTPSink(url, body=NDJSON()), on_error="raise") as sink:
        yield drive(sink.handle), _flushed(sink)


@contextmanager
def _otlp_sink(url: str) -> Iterator[Open]:
    with BackgroundSink(HTTPSink(url, body=OTLPLogs({"service.name": "shop"})), on_error="raise") as sink:
        yield drive(sink.handle), _flushed(sink)


@contextmanager
def _sink_handler(url: str) -> Iterator[Open]:
    with BackgroundSink(HTTPSink(url, body=NDJSON()), on_error="raise") as sink:
        yield drive_logging(SinkHandler(sink)), _flushed(sink)


def _flushed(sink: BackgroundSink) -> Callable[[], object]:
    def flush() -> None:
        assert sink.flush(60), sink.stats()

    return flush


class _HTTPHandler(logging.handlers.HTTPHandler):
    """The standard library's handler, which leaves connections to the garbage collector, which emits warnings."""

    connection: http.client.HTTPConnection | None = None

    def getConnection(self, host: str, secure: bool) -> http.client.HTTPConnection:  # noqa: N802 - logging's
        """Close the connection of the last event, and make another."""
        self.close_last()
        self.connection = super().getConnection(host, secure)
        return self.connection

    def close_last(self) -> None:
        """Close the connection of the last event."""
        if self.connection is not None:
            self.connection.close()

    def close(self) -> None:
        """Close the connection of the last event."""
        self.close_last()
        super().close()


def _http_handler(url: str) -> logging.Handler:
    parts = urlsplit(url)
    return _HTTPHandler(parts.netloc, parts.path, method="POST")


@contextmanager
def _plain_handler(url: str) -> Iterator[Open]:
    handler = _http_handler(url)
    try:
        yield drive_logging(handler), bool
    finally:
        handler.close()


@contextmanager
def _queue_handler(url: str) -> Iterator[Open]:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handler = _http_handler(url)
    listener = logging.handlers.QueueListener(waiting, handler)
    listener.start()
    try:
        yield drive_logging(logging.handlers.QueueHandler(waiting)), bool
    finally:
        listener.stop()
        handler.close()


@contextmanager
def _open_telemetry(url: str) -> Iterator[Open]:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    # It reports dropped events on stderr.
    logging.getLogger("opentelemetry").disabled = True
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=url)))
    with warnings.catch_warnings():
        # The class was moved to another package, and is the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        handler = LoggingHandler(logger_provider=provider)
    for name in ("opentelemetry.sdk._shared_internal", "opentelemetry.exporter.otlp.proto.http._log_exporter"):
        logging.getLogger(name).disabled = True
    try:
        yield drive_logging(handler), provider.force_flush
    finally:
        provider.shutdown()


@contextmanager
def _logstash(url: str) -> Iterator[Open]:
    from logstash_async.handler import AsynchronousLogstashHandler
    from logstash_async.transport import HttpTransport

    parts = urlsplit(url)
    transport = HttpTransport(
        str(parts.hostname), int(parts.port or 0), ssl_enable=False, timeout=30, path=parts.path.strip("/")
    )
    handler = AsynchronousLogstashHandler(parts.hostname, parts.port, database_path=None, transport=transport)
    try:
        yield drive_logging(handler), handler.flush
    finally:
        handler.close()


FLOOR = Shipper(f"floor: requests posts {BATCH} lines", _requests, whole=True)

SHIPPERS = (
    FLOOR,
    Shipper("BackgroundSink(HTTPSink(NDJSON))", _sink, whole=True),
    Shipper("BackgroundSink(HTTPSink(OTLPLogs))", _otlp_sink, whole=True),
    Shipper("SinkHandler → BackgroundSink(HTTPSink(NDJSON))", _sink_handler, whole=True),
    Shipper("HTTPHandler", _plain_handler, part=40),
    Shipper("QueueHandler, QueueListener → HTTPHandler", _queue_handler, part=40),
    Shipper("OpenTelemetry: BatchLogRecordProcessor, OTLP", _open_telemetry, patience_seconds=6.0),
    # It sends remaining events every ten seconds.
    Shipper("python-logstash-async: HttpTransport", _logstash, part=20, patience_seconds=12.0),
)
